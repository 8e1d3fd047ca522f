"""Submission of orders as jobs: admit, wait for the end, read the result, cancel."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable, SchedulerError, ServerStopping
from msf_scheduler.jobs import JobRecord, JobState
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.rate_limits import UsageMeter
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.tracing import Tracing, job_attributes
from msf_server.drain import Drain
from msf_server.errors import ApiError
from msf_server.metrics import Metrics
from msf_server.orders import Order
from msf_server.request_log import RequestLog, log_of

LATE_S = 5.0  # how long after its deadline the end of a job may reach this server
FILE_OVERHEAD_BYTES = 8192  # headers and text chunks
WORST_COMPRESSION = 1.05  # encoded size of random pixels over their raw size


@dataclass(frozen=True)
class PendingJob:
    """An accepted job; `end`, if its caller waits, resolves to its terminal state."""

    order: Order
    job: JobRecord
    end: asyncio.Future[JobState] | None


class Submission:
    """Jobs of one server process. During a drain, new jobs are refused and accepted ones are still answered."""

    def __init__(
        self,
        queue: JobQueue,
        replies: ReplyReader,
        meter: UsageMeter,
        metrics: Metrics,
        tracing: Tracing | None,
        drain: Drain,
    ) -> None:
        self.drain = drain
        self._queue = queue
        self._replies = replies
        self._meter = meter
        self._metrics = metrics
        self._tracing = tracing

    async def submit(self, order: Order, log: RequestLog, *, notify: bool = False) -> PendingJob:
        """Admit a job and note its id; with `notify`, `wait` may follow.

        A job whose admission could not be confirmed is cancelled, unless an idempotency key lets its caller ask again.
        Raises ServerStopping, QueueUnavailable, LimitExceeded, QueueFull, MemoryFull, DeadlineTooShort and
        IdempotencyConflict.
        """
        if self.drain.has_begun:
            raise ServerStopping
        log.spec = order.spec
        job_id = new_job_id()
        end = self._replies.expect(job_id) if notify else None  # before admission: the job may end at once
        try:
            job = await self._admit(order, job_id, reply_to=self._replies.stream if notify else None)
        except BaseException as error:
            self._forget(job_id, end)
            if isinstance(error, QueueUnavailable | asyncio.CancelledError):
                log.job_id = job_id
                if order.idempotency is None:
                    await self.cancel(job_id)
            raise
        if end is not None and job.id != job_id:  # the idempotency key of an earlier job
            self._forget(job_id, end)
            end = self._replies.expect(job.id)
            try:
                job = await self._queue.get(job.id) or job  # it may have ended before `expect`
            except BaseException:
                self._forget(job.id, end)
                raise
        log.job_id = job.id
        if self._tracing:
            self._tracing.set_attributes(job_attributes(job))
        return PendingJob(order, job, end)

    async def wait(
        self, pending: PendingJob, request: Request, patience_s: float = math.inf
    ) -> tuple[JobRecord, list[bytes]]:
        """Wait for the job's end, at most `patience_s`; return its record, with its images once it has succeeded.

        If the caller disconnects first, the job is cancelled unless it is to finish alone. Raises ApiError, also as
        `result` does, and QueueUnavailable.
        """
        job, end = pending.job, pending.end
        assert end is not None, "submitted without notify"
        late_s = math.inf if job.terms.timeout_s is None else job.terms.timeout_s + LATE_S
        try:
            has_ended = job.state.is_terminal or await _ended(end, request, min(late_s, patience_s))
            if not has_ended and late_s <= patience_s:
                await self.expire(job.id)
        except BaseException:
            await self.abandon(pending)
            raise
        finally:
            self._forget(job.id, end)
        record, images = await self.result(job.id)
        if patience_s == math.inf and not record.state.is_terminal:
            raise ApiError(f"Redis has lost the end of job {job.id}.", code=ErrorCode.RESULT_GONE)
        log_of(request.scope).queue_ms = record.timings.queue_ms if record.timings else None
        return record, images

    async def result(self, job_id: str) -> tuple[JobRecord, list[bytes]]:
        """Read a job and, once it has succeeded, its images, which count as delivered.

        Raises ApiError for a job that ended otherwise, or whose images are no longer kept.
        """
        job, images = await self._queue.read(job_id) or (None, [])
        if job is not None and not job.state.is_terminal:
            return job, []
        if job is not None:
            _check_succeeded(job)
        if job is None or not images:
            raise ApiError(f"Job {job_id} has ended, but its images are no longer kept.", code=ErrorCode.RESULT_GONE)
        self._metrics.observe_result(job, len(images))
        return job, images

    async def abandon(self, pending: PendingJob) -> None:
        """Cancel the job of a caller that stopped waiting, unless it is to finish alone."""
        if not pending.order.finish_alone:
            await self.cancel(pending.job.id)

    async def cancel(self, job_id: str) -> None:
        """Cancel a job if Redis can be reached; otherwise its deadline ends it."""
        with suppress(SchedulerError):
            await self._queue.cancel(job_id)

    async def expire(self, job_id: str) -> None:
        """End a job whose end is overdue."""
        await self._queue.expire(job_id)

    async def _admit(self, order: Order, job_id: str, reply_to: str | None) -> JobRecord:
        """Charge the caller's key, then queue the job; the samples of a job that is not new are refunded.

        The key is charged first, because limits must hold for concurrent requests. If Redis fails in between, the job
        may have been admitted, and the charge stays: at worst, a quota ends a few samples early.
        """
        key, spec = order.caller.key, order.spec
        cost = {"samples": spec.num_samples, "sample_steps": spec.num_samples * spec.num_steps}
        if key:
            await self._meter.charge_job(key.name, key.limits, **cost)
        is_charged = False
        try:
            job = await self._enqueue(order, job_id, reply_to)
            is_charged = job.id == job_id  # a repeated request costs no new samples
        except QueueUnavailable:
            is_charged = True
            raise
        finally:
            if key and not is_charged:
                with suppress(QueueUnavailable):
                    await self._meter.refund(key.name, **cost)
        if job.id == job_id and job.images_of is None:
            self._metrics.observe_admission(spec, key)
        return job

    async def _enqueue(self, order: Order, job_id: str, reply_to: str | None) -> JobRecord:
        model, spec, terms = order.model, order.spec, order.terms
        if self._tracing:
            terms = terms.model_copy(update={"traceparent": self._tracing.traceparent()})
        num_pixels = model.image_size**2 * model.image_channels
        num_files = spec.num_samples * (1 + terms.num_previews)
        started = time.perf_counter()
        job = await self._queue.admit(
            spec,
            terms,
            job_id=job_id,
            reply_to=reply_to,
            least_s=model.least.bound_s(spec.num_steps, spec.num_samples),
            result_bytes=num_files * round(num_pixels * WORST_COMPRESSION + FILE_OVERHEAD_BYTES),
            idempotency=order.idempotency,
            fingerprint=order.share_under,
            bound_to=order.bound_to,
            max_open_steps=order.caller.key.concurrent_sample_steps if order.caller.key else None,
        )
        self._metrics.round_trip_s.labels("admit").observe(time.perf_counter() - started)
        return job

    def _forget(self, job_id: str, end: asyncio.Future[JobState] | None) -> None:
        if end is not None:
            self._replies.forget(job_id, end)


def _check_succeeded(job: JobRecord) -> None:
    if job.state is JobState.CANCELLED:
        raise ApiError(f"Job {job.id} was cancelled.", code=ErrorCode.CANCELLED)
    if job.state is JobState.EXPIRED:
        message = f"Job {job.id} could not end within {job.terms.timeout_s or 0:g} s and was dropped."
        raise ApiError(message, code=ErrorCode.TIMEOUT)
    if job.error is not None:
        raise ApiError(f"Job {job.id} failed: {job.error.message}", code=job.error.code)


async def _ended(end: asyncio.Future[JobState], request: Request, timeout_s: float) -> bool:
    """Wait for `end`; return False after `timeout_s`. Raises ApiError once the caller has disconnected."""
    gone = asyncio.create_task(_disconnected(request))
    events: set[asyncio.Future[Any]] = {end, gone}
    try:
        timeout = None if timeout_s == math.inf else timeout_s
        await asyncio.wait(events, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return bool(end.result())  # raises QueueUnavailable for a job that Redis lost
        if gone.done():
            raise ApiError("The caller closed the connection.", code=ErrorCode.CLIENT_GONE)
        return False
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
