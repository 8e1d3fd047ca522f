"""Consequences of step batches for their jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msf_scheduler.jobs import JobError, Preview, Progress
from msf_scheduler.stage import Stage
from msf_worker.active_job import ActiveJob
from msf_worker.active_jobs import ActiveJobs, HostedModel

PROGRESS_INTERVAL_S = 0.1


@dataclass
class Outcome:
    """Work of the event loop for some jobs, and whether the worker should claim more work."""

    completed: list[ActiveJob] = field(default_factory=list)
    failed: list[tuple[ActiveJob, JobError]] = field(default_factory=list)
    expired: list[ActiveJob] = field(default_factory=list)
    previews: list[tuple[ActiveJob, Preview, NDArray[np.uint8]]] = field(default_factory=list)
    progress: list[tuple[ActiveJob, Progress]] = field(default_factory=list)
    wants_work: bool = False

    def __bool__(self) -> bool:
        return bool(self.completed or self.failed or self.expired or self.previews or self.progress or self.wants_work)


def due_progress(jobs: ActiveJobs, job: ActiveJob, now: float) -> Progress | None:
    """Return a job's progress when a stage begins, when all steps are done, and at intervals."""
    if job.is_complete:
        num_steps = job.spec.num_samples * (job.spec.num_steps + 1)
        return job.progress(Stage.DECODE, num_steps, num_steps)
    if not jobs.holds(job):
        return None
    stage, steps_done, num_steps = jobs.active.progress(job.number)
    last_stage, published_at = job.last_progress
    if stage == last_stage and now - published_at < PROGRESS_INTERVAL_S:
        return None
    job.last_progress = stage, now
    return job.progress(stage, steps_done, num_steps)


def due_previews(model: HostedModel, slots: Sequence[int]) -> dict[int, int]:
    """Return the number of the preview that is due of a sample, by slot; few have one."""
    numbers = {}
    for slot in slots:
        job, step = model.jobs_by_slot.get(slot), model.runner.executor.last_stage_step(slot)
        if job is None or step is None or not job.terms.num_previews:  # None: the batch before ended the job
            continue
        if (number := job.due_preview(step)) is not None:
            numbers[slot] = number
    return numbers


def preview_outcome(model: HostedModel, numbers: dict[int, int]) -> Outcome:
    """Decode previews, of which `numbers` are by slot. Raises what the executor does."""
    images = model.runner.executor.preview(tuple(numbers))
    outcome = Outcome()
    for slot, number in numbers.items():
        job = model.jobs_by_slot[slot]
        outcome.previews.append((job, Preview(index=job.slots[slot], number=number), images[slot]))
    return outcome
