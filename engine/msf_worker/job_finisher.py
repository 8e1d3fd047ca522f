"""The end of a job: encoding its images, and storing its result or error in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError
from msf_scheduler.leases import Leases
from msf_scheduler.tracing import Tracing
from msf_worker.active_job import ActiveJob
from msf_worker.image_encoder import encode_image
from msf_worker.lease_keeper import LeaseKeeper
from msf_worker.metrics import WorkerMetrics
from msf_worker.progress_publisher import ProgressPublisher
from msf_worker.waiting import until_redis_answers

logger = logging.getLogger(__name__)

NOT_STORED = JobError(code=ErrorCode.ENGINE_ERROR, message="the images could not be encoded or stored")


@dataclass
class JobFinisher:
    """Finishes each job in a task of its own, so that steps continue; images are encoded in a thread."""

    keeper: LeaseKeeper
    leases: Leases
    publisher: ProgressPublisher
    metrics: WorkerMetrics
    tracing: Tracing | None = None
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)

    def encode(self, job: ActiveJob, loop: asyncio.AbstractEventLoop) -> None:
        """Encode the images of a complete job, in the encoder's thread, and store them from the event loop."""
        started_at = time.monotonic()
        try:
            images = [
                encode_image(job.images[index], job.spec, index=index, provenance=job.provenance)
                for index in job.spec.indices
            ]
        except Exception:
            logger.exception("the images of job %s cannot be encoded", job.id)
            loop.call_soon_threadsafe(self.fail, job, NOT_STORED)
        else:
            loop.call_soon_threadsafe(self._succeed_later, job, images, (started_at, time.monotonic()))

    def _succeed_later(self, job: ActiveJob, images: list[bytes], encoded: tuple[float, float]) -> None:
        self._start(self._succeed(job, images, encoded))

    def fail(self, job: ActiveJob, error: JobError) -> None:
        """Store why a job failed."""
        self._start(self._store(job, "failed", lambda: self.leases.fail(job.claim, error)))

    def expire(self, job: ActiveJob) -> None:
        """Store that a job missed its deadline."""
        self._start(self._store(job, "expired", lambda: self.leases.expire(job.claim)))

    async def close(self) -> None:
        """Cancel what has not been stored; those leases expire."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, finishing: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(finishing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _succeed(self, job: ActiveJob, images: list[bytes], encoded: tuple[float, float]) -> None:
        encode_s = encoded[1] - encoded[0]
        try:
            if self.tracing is not None:
                from msf_worker.otel_spans import record_job

                record_job(self.tracing, job, encoded)
            await self.publisher.flush(job)
            is_stored = await self._store(
                job,
                "succeeded",
                lambda: self.leases.succeed(job.claim, images, job.timings(encode_s), job.provenance),
            )
            if is_stored:
                model = job.spec.model, job.spec.version
                self.metrics.record_timings(model, job.terms, job.timings(encode_s), len(images))
        except Exception:
            logger.exception("the images of job %s cannot be stored", job.id)
            await self._store(job, "failed", lambda: self.leases.fail(job.claim, NOT_STORED))

    async def _store(self, job: ActiveJob, outcome: str, store: Callable[[], Awaitable[bool]]) -> bool:
        """Store for as long as Redis is unavailable: computed images are not thrown away."""
        is_stored = await until_redis_answers(store)
        self.keeper.let_go(job.claim)
        outcome = outcome if is_stored else "dropped"
        self.metrics.jobs.labels(job.spec.model, job.spec.version, outcome).inc()
        logger.info("job %s %s", job.id, outcome, extra={"job_id": job.id, "outcome": outcome})
        return is_stored
