"""One job from admission to its end, for a caller who waits."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable, SchedulerError
from msf_scheduler.jobs import JobRecord, JobState, Timings
from msf_scheduler.queue import new_job_id
from msf_server.dependencies import ServerContext
from msf_server.errors import ApiError, Cancelled, ClientGone, JobFailed, TimedOut
from msf_server.orders import Order, admit

LATE_S = 5.0  # how much later than its deadline a job's end may reach us


@dataclass(frozen=True)
class Completed:
    """A job that succeeded: encoded files in the order of their sample indices."""

    job: JobRecord
    images: list[bytes]
    timings: Timings
    finished_at: float

    @property
    def is_cached(self) -> bool:
        """Made by an identical job."""
        return self.job.images_of is not None


async def complete(order: Order, context: ServerContext, request: Request) -> Completed:
    """Admits the job and waits for its images, as `complete_within` any time."""
    done = await complete_within(math.inf, order, context, request)
    assert isinstance(done, Completed)
    return done


async def complete_within(
    patience_s: float, order: Order, context: ServerContext, request: Request
) -> Completed | JobRecord:
    """Admits the job and waits for its images; after `patience_s`, returns the job as it is then.

    Raises QueueFull, MemoryFull, DeadlineTooShort, IdempotencyConflict, QueueUnavailable, TimedOut, ClientGone,
    Cancelled, JobFailed. A job whose caller stops waiting is cancelled unless it is to finish alone; so is one whose
    admission was never confirmed.
    """
    job_id = new_job_id()
    request.state.job_id = job_id
    end = context.replies.expect(job_id)
    try:
        try:
            job = await admit(order, context, job_id=job_id, reply_to=context.replies.stream)
        except (QueueUnavailable, asyncio.CancelledError):
            await cancel(job_id, context)
            raise
        if job.id != job_id:
            context.replies.forget(job_id, end)
            request.state.job_id = job_id = job.id
            end = context.replies.expect(job_id)
            job = await context.queue.get(job_id) or job  # it may have ended before we expected that
        try:
            state = job.state if job.state.is_terminal else await _first(end, order, request, patience_s)
        except _Impatient:
            return await context.queue.get(job_id) or job
        except TimedOut:
            state = await context.queue.expire(job_id) or JobState.EXPIRED
        except BaseException:
            if not order.finish_alone:
                await cancel(job_id, context)
            raise
    finally:
        context.replies.forget(job_id, end)
    done = await completed(job_id, state, context)
    context.metrics.observe_job(order.model, done.timings, len(done.images), cached=done.is_cached)
    return done


async def begin(order: Order, context: ServerContext, request: Request) -> JobRecord:
    """Admits the job, for a caller who watches it. Raises as `complete` until the job is accepted."""
    job_id = new_job_id()
    try:
        job = await admit(order, context, job_id=job_id, reply_to=None)
    except (QueueUnavailable, asyncio.CancelledError):
        await cancel(job_id, context)
        raise
    request.state.job_id = job.id
    return job


async def cancel(job_id: str, context: ServerContext) -> None:
    with suppress(SchedulerError):
        await context.queue.cancel(job_id)


class _Impatient(Exception):
    """The caller does not wait any longer, on purpose."""


async def _first(end: asyncio.Future[JobState], order: Order, request: Request, patience_s: float) -> JobState:
    gone = asyncio.create_task(_disconnected(request))
    either: set[asyncio.Future[Any]] = {end, gone}
    late_s = math.inf if order.terms.timeout_s is None else order.terms.timeout_s + LATE_S
    timeout_s = min(late_s, patience_s)
    try:
        await asyncio.wait(
            either, timeout=None if timeout_s == math.inf else timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        if end.done():
            return end.result()
        if gone.done():
            raise ClientGone("The caller closed the connection.")
        if timeout_s < late_s:
            raise _Impatient
        raise TimedOut("The job did not end in time.")
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def completed(job_id: str, state: JobState, context: ServerContext) -> Completed:
    """What a job that ended so has to give. Raises Cancelled, TimedOut, JobFailed, ApiError (the result is gone)."""
    job = await context.queue.get(job_id)
    if state is JobState.CANCELLED:
        raise Cancelled(f"Job {job_id} was cancelled.")
    if state is JobState.EXPIRED:
        timeout_s = job.terms.timeout_s if job else None
        raise TimedOut(f"Job {job_id} could not end within {timeout_s or 0:g} s and was dropped.")
    if job is not None and job.error is not None:
        raise JobFailed(job_id, job.error)
    images = await context.queue.images(job) if job else []
    if job is None or job.timings is None or job.finished_at is None or not images:
        raise ApiError(f"Job {job_id} ended as {state}, but its result is gone.", code=ErrorCode.RESULT_GONE)
    return Completed(job, images, job.timings, job.finished_at)
