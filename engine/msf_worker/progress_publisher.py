"""What callers may see of a job before its end: how far it is, if somebody watches, and the previews it asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import Preview, Progress
from msf_scheduler.leases import Leases
from msf_worker.active_job import ActiveJob
from msf_worker.image_encoder import encode_preview

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.1


class Showing:
    """What is shown of one job goes to Redis in its order, in a chain of tasks. Nothing here holds up its end for long.

    While Redis is away nothing is shown, and nothing is made up for later.
    """

    def __init__(self, leases: Leases, encoder: ThreadPoolExecutor) -> None:
        self.watched: set[str] = set()  # ids of jobs whose progress somebody wants to know
        self._leases = leases
        self._encoder = encoder
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by job: the last of its chain
        self._told: dict[str, tuple[str, float]] = {}  # by job: stage, and when

    def progress(self, job: ActiveJob, progress: Progress) -> None:
        """Some times a second, whenever a stage begins, and when all is done."""
        stage, at = self._told.get(job.id, ("", 0.0))
        now = time.monotonic()
        is_done = progress.steps_done == progress.num_steps
        if is_done or progress.stage != stage or now - at >= PROGRESS_EVERY_S:
            self._told[job.id] = progress.stage, now
            self._chain(job, self._leases.show_progress(job.claim, progress))

    def preview(self, job: ActiveJob, preview: Preview, pixels: NDArray[np.uint8]) -> None:
        job.num_previews_shown += 1
        self._chain(job, self._show(job, job.num_previews_shown, preview, pixels))

    async def shown(self, job: ActiveJob) -> None:
        """Return when all that there was to show is in Redis, or never will be."""
        task = self._tasks.get(job.id)
        if task is not None:
            await task

    def forget(self, job_id: str) -> None:
        self.watched.discard(job_id)
        self._told.pop(job_id, None)
        self._tasks.pop(job_id, None)

    async def _show(self, job: ActiveJob, sequence: int, preview: Preview, pixels: NDArray[np.uint8]) -> None:
        claim = job.claim
        file = await asyncio.get_running_loop().run_in_executor(self._encoder, encode_preview, pixels, claim.job.spec)
        await self._leases.show_preview(claim, sequence, preview, file)

    def _chain(self, job: ActiveJob, showing: Coroutine[Any, Any, object]) -> None:
        self._tasks[job.id] = asyncio.create_task(_after(self._tasks.get(job.id), showing))


async def _after(earlier: asyncio.Task[None] | None, showing: Coroutine[Any, Any, object]) -> None:
    if earlier is not None:
        await earlier
    try:
        await showing
    except QueueUnavailable as error:
        logger.warning("something of a job is not shown: %s", error)
