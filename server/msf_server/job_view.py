"""From a job to what is answered about it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from msf_scheduler.jobs import JobRecord, JobSpec, JobState
from msf_server.dependencies import ServerContext
from msf_server.routes.files import urls
from msf_server.schemas import Image, JobObject


def encoded(images: Sequence[bytes], spec: JobSpec) -> list[Image]:
    return [
        Image(b64_json=b64encode(image).decode(), index=index)
        for index, image in zip(spec.indices, images, strict=False)
    ]


async def job_object(job: JobRecord, base_url: str, context: ServerContext) -> JobObject:
    """With its images, inside and as addresses, once it has succeeded."""
    images = await context.queue.images(job) if job.state is JobState.SUCCEEDED else []
    if not images:
        return without_images(job)
    addresses = await urls(job, base_url, context)
    data = [
        image.model_copy(update={"url": url}) for image, url in zip(encoded(images, job.spec), addresses, strict=True)
    ]
    return without_images(job).model_copy(update={"data": data})


def without_images(job: JobRecord) -> JobObject:
    return JobObject(
        id=job.id,
        status=job.state,
        created_at=job.admitted_at,
        deadline_at=job.deadline_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        spec=job.spec,
        priority=job.terms.priority,
        progress=job.progress,
        timings=job.timings,
        provenance=job.provenance,
        webhook=job.delivery,
        error=job.error,
        data=None,
    )
