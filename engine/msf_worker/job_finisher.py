"""From a job's images, or what befell it, to its one end in Redis."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobError
from msf_scheduler.leases import Leases
from msf_scheduler.tracing import Tracing
from msf_worker.active_job import ActiveJob
from msf_worker.image_encoder import encode_image
from msf_worker.metrics import WorkerMetrics
from msf_worker.progress_publisher import Showing

logger = logging.getLogger(__name__)

RETRY_S = 0.5  # between attempts to reach Redis again
T = TypeVar("T")


class Finisher:
    """One task for each job that ends; the encoders run in a thread. `on_end` is told when its lease is given up."""

    def __init__(
        self,
        leases: Leases,
        metrics: WorkerMetrics,
        showing: Showing,
        encoder: ThreadPoolExecutor,
        on_end: Callable[[ActiveJob], None],
        tracing: Tracing | None = None,
    ) -> None:
        self._leases = leases
        self._metrics = metrics
        self._showing = showing
        self._encoder = encoder
        self._on_end = on_end
        self._tracing = tracing
        self._tasks: set[asyncio.Task[None]] = set()

    def succeed(self, job: ActiveJob) -> None:
        """Encode and store the images of a job that has all of them."""
        self._start(self._succeed(job))

    def fail(self, job: ActiveJob, code: str, message: str) -> None:
        self._start(self._fail(job, JobError(code=code, message=message)))

    def expire(self, job: ActiveJob) -> None:
        self._start(self._expire(job))

    async def close(self) -> None:
        """Cut off what has not ended; its lease lapses."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _succeed(self, job: ActiveJob) -> None:
        try:
            started_at = time.monotonic()
            images, encode_s = await asyncio.get_running_loop().run_in_executor(self._encoder, self._encode, job)
            if self._tracing is not None:
                from msf_worker.otel_spans import record_job

                record_job(self._tracing, job, (started_at, time.monotonic()))
            await self._showing.shown(job)
            kept = await self._store(
                job,
                "succeeded",
                lambda: self._leases.succeed(job.claim, images, job.timings(encode_s), job.provenance),
            )
            if kept:
                spec = job.claim.job.spec
                self._metrics.record_timings((spec.model, spec.version), job.timings(encode_s), len(images))
        except Exception:
            logger.exception("the images of job %s cannot be encoded or stored", job.id)
            error = JobError(code=ErrorCode.ENGINE_ERROR, message="the images could not be encoded or stored")
            await self._fail(job, error)

    async def _fail(self, job: ActiveJob, error: JobError) -> None:
        await self._store(job, "failed", lambda: self._leases.fail(job.claim, error))

    async def _expire(self, job: ActiveJob) -> None:
        await self._store(job, "expired", lambda: self._leases.expire(job.claim))

    async def _store(self, job: ActiveJob, outcome: str, end: Callable[[], Awaitable[bool]]) -> bool:
        kept = await until_redis_answers(end)
        self._on_end(job)
        spec = job.claim.job.spec
        outcome = outcome if kept else "dropped"
        self._metrics.jobs.labels(spec.model, spec.version, outcome).inc()
        logger.info("job %s %s", job.id, outcome, extra={"job_id": job.id, "outcome": outcome})
        return kept

    def _encode(self, job: ActiveJob) -> tuple[list[bytes], float]:
        started_at = time.monotonic()
        spec = job.claim.job.spec
        images = [
            encode_image(job.images[index], spec, index=index, provenance=job.provenance) for index in spec.indices
        ]
        return images, time.monotonic() - started_at


async def until_redis_answers(call: Callable[[], Awaitable[T]]) -> T:
    """Try for as long as Redis is away: a result that was computed is not thrown away."""
    while True:
        try:
            return await call()
        except QueueUnavailable as error:
            logger.warning("waiting for Redis: %s", error)
            await asyncio.sleep(RETRY_S)
