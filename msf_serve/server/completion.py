"""One job from admission to its end, for a caller who waits."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from msf_serve.scheduler.errors import QueueFull, SchedulerError
from msf_serve.scheduler.jobs import JobRecord, JobSpec, JobState, Timings
from msf_serve.scheduler.queue import new_job_id
from msf_serve.server.context import ServerContext
from msf_serve.server.errors import ApiError, Cancelled, ClientGone, JobFailed, TimedOut


@dataclass(frozen=True)
class Completed:
    """A job that succeeded: encoded files in the order of their sample indices."""

    job_id: str
    images: list[bytes]
    timings: Timings
    finished_at: float


async def complete(spec: JobSpec, context: ServerContext, request: Request) -> Completed:
    """Admits `spec` and waits for its images.

    Raises QueueFull, QueueUnavailable, TimedOut, ClientGone, Cancelled, JobFailed. A job whose caller stops
    waiting, for whatever reason, is cancelled, even one whose admission was never confirmed.
    """
    job_id = new_job_id()
    end = context.replies.expect(job_id)
    try:
        started = time.perf_counter()
        await context.queue.admit(spec, job_id=job_id, reply_to=context.replies.stream)
        context.metrics.round_trip_s.observe(time.perf_counter() - started)
        state = await _first(end, request, context.settings.request_timeout_s)
    except QueueFull:
        raise
    except BaseException:
        with suppress(SchedulerError):
            await context.queue.cancel(job_id)
        raise
    finally:
        context.replies.forget(job_id)
    record, images = await asyncio.gather(context.queue.get(job_id), context.queue.images(job_id))
    return _completed(job_id, state, record, images)


async def _first(end: asyncio.Future[JobState], request: Request, timeout_s: float) -> JobState:
    gone = asyncio.create_task(_disconnected(request))
    either: set[asyncio.Future[Any]] = {end, gone}
    try:
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return end.result()
        if gone.done():
            raise ClientGone("The caller closed the connection; its job was cancelled.")
        raise TimedOut(f"The job did not end within {timeout_s:g} s and was cancelled.")
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _completed(job_id: str, state: JobState, record: JobRecord | None, images: list[bytes]) -> Completed:
    if state is JobState.CANCELLED:
        raise Cancelled(f"Job {job_id} was cancelled.")
    if state is JobState.EXPIRED:
        raise TimedOut(f"Job {job_id} passed its deadline.")
    if record is not None and record.error is not None:
        raise JobFailed(job_id, record.error)
    if record is None or record.timings is None or record.finished_at is None or not images:
        raise ApiError(f"Job {job_id} ended as {state}, but its result is gone.", code="result_gone")
    return Completed(job_id, images, record.timings, record.finished_at)
