"""Publication of running jobs: the progress of jobs that are watched, and the previews that jobs asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import Preview, Progress
from msf_scheduler.leases import Leases
from msf_worker.active_job import ActiveJob
from msf_worker.image_encoder import encode_preview

logger = logging.getLogger(__name__)


@dataclass
class ProgressPublisher:
    """Writes each job's progress and previews to Redis in order, in a chain of tasks that does not delay its steps.

    While Redis is unavailable nothing is published, and nothing is made up for later.
    """

    leases: Leases
    encoder: ThreadPoolExecutor

    def publish_progress(self, job: ActiveJob, progress: Progress) -> None:
        """Publish the progress."""
        self._chain(job, self.leases.publish_progress(job.claim, progress))

    def publish_preview(self, job: ActiveJob, preview: Preview, pixels: NDArray[np.uint8]) -> None:
        """Encode and publish a preview."""
        job.num_previews += 1
        self._chain(job, self._publish_preview(job, job.num_previews, preview, pixels))

    async def flush(self, job: ActiveJob) -> None:
        """Wait until everything of the job has been published or given up."""
        if job.publication is not None:
            await job.publication

    async def _publish_preview(
        self, job: ActiveJob, sequence: int, preview: Preview, pixels: NDArray[np.uint8]
    ) -> None:
        claim = job.claim
        file = await asyncio.get_running_loop().run_in_executor(self.encoder, encode_preview, pixels, job.spec)
        await self.leases.publish_preview(claim, sequence, preview, file)

    def _chain(self, job: ActiveJob, publishing: Coroutine[Any, Any, object]) -> None:
        job.publication = asyncio.create_task(_after(job.publication, publishing))


async def _after(earlier: asyncio.Task[None] | None, publishing: Coroutine[Any, Any, object]) -> None:
    if earlier is not None:
        await earlier
    try:
        await publishing
    except QueueUnavailable as error:
        logger.warning("progress or a preview of a job is not published: %s", error)
