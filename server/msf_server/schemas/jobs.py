"""Answers of `/v1/jobs`, and the events of a job."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, Field

from msf_scheduler.jobs import (
    Delivery,
    JobError,
    JobRecord,
    JobSpec,
    JobState,
    ModelInfo,
    OutputFormat,
    Priority,
    Progress,
    Provenance,
    Timings,
)
from msf_server.schemas.images import Image, size_of


class JobObject(BaseModel):
    """A job; times are Unix seconds."""

    id: str = Field(description="The last part of the job's path.")
    object: Literal["job"] = "job"
    status: JobState
    created_at: float = Field(description="Time of admission.")
    deadline_at: float | None = Field(description="Time at which timeout_s is over; null: there is no deadline.")
    finished_at: float | None = Field(description="Time of the end; null: the job has not ended.")
    attempt: int = Field(description="How many workers have claimed it so far.")
    spec: JobSpec
    size: str | None = Field(
        description="Width and height of its images in pixels; null: its model is not known, as in webhooks."
    )
    priority: Priority
    timings: Timings | None = Field(description="Present once it has succeeded.")
    progress: Progress | None = Field(description="Reported while a client follows its events.")
    provenance: Provenance | None = Field(description="What the images were made with.")
    webhook: Delivery | None = Field(description="State of its webhook, after the first attempt.")
    error: JobError | None = Field(description="Why it failed, if it did.")
    data: list[Image] | None = Field(description="The images, once it has succeeded.")

    @classmethod
    def of(cls, job: JobRecord, models: Iterable[ModelInfo] = (), *, has_images: bool = False) -> Self:
        """Describe `job`, whose model is looked up in `models`, with an empty list for its images if it has any."""
        key = job.spec.model, job.spec.version
        return cls(
            id=job.id,
            status=job.state,
            created_at=job.admitted_at,
            deadline_at=job.deadline_at,
            finished_at=job.finished_at,
            attempt=job.attempt,
            spec=job.spec,
            size=next((size_of(model) for model in models if (model.name, model.version) == key), None),
            priority=job.terms.priority,
            progress=job.progress,
            timings=job.timings,
            provenance=job.provenance,
            webhook=job.delivery,
            error=job.error,
            data=[] if has_images else None,
        )


class JobList(BaseModel):
    """Jobs, newest first; `after` takes the id of the last one."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class QueuedEvent(BaseModel):
    """Position in the queue."""

    type: Literal["queued"] = "queued"
    job_id: str
    position: int = Field(description="How many jobs in the queue are older; fair sharing may change the order.")


class ProgressEvent(Progress):
    """Progress of a running job."""

    type: Literal["progress"] = "progress"
    job_id: str
    attempt: int
    num_samples: int


class PreviewEvent(BaseModel):
    """A preview of one image."""

    type: Literal["partial_image"] = "partial_image"
    job_id: str
    index: int = Field(description="Index of the sample.")
    partial_image_index: int = Field(description="Counts from 0.")
    b64_json: str
    output_format: OutputFormat
