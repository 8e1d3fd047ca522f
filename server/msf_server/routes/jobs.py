"""`/v1/jobs`: the same work without waiting for it."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from msf_scheduler.errors import SchedulerError
from msf_scheduler.job_events import EventId, StoredPreview
from msf_scheduler.jobs import JobRecord, Progress
from msf_scheduler.queue import new_job_id
from msf_server.api_keys import ApiKey
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import InvalidRequest, JobNotFound, shown
from msf_server.job_view import job_object, without_images
from msf_server.metrics import MeasuredRoute
from msf_server.middleware.auth import Caller, documented, may_see
from msf_server.orders import admit, read_order, tenant_of
from msf_server.routes.files import base_url
from msf_server.schemas import (
    REFUSALS,
    ImageRequest,
    JobList,
    JobObject,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
)
from msf_server.sse import EventStream, Pulse, error_frame, frame

router = APIRouter(
    prefix="/v1/jobs", route_class=MeasuredRoute, tags=["jobs"], responses=REFUSALS, dependencies=[documented]
)

MAX_LISTED = 100
JobId = Annotated[str, Path(description="As the answer to `POST /v1/jobs` gave it.")]


@router.post("", status_code=202, summary="Queue a job")
async def create(body: ImageRequest, request: Request, response: Response, context: Context) -> JobObject:
    """Answers at once; `Location` is where the job's state and, once it succeeded, its images are."""
    if body.stream:
        message = "Invalid stream: true. Allowed: false; /v1/jobs/{id}/events is the stream of a job."
        raise InvalidRequest(message, param="stream")
    order = await read_order(body, request, context)
    job = await admit(order, context, job_id=new_job_id(), reply_to=None)
    request.state.job_id = job.id
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return await job_object(job, base_url(request), context)


@router.get("", summary="One's own jobs, the newest first")
async def list_jobs(
    request: Request,
    context: Context,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="How many at most.")] = 20,
    after: Annotated[str | None, Query(description="The id of the last job of the page before.")] = None,
) -> JobList:
    """Those of the caller's API key, or, where keys are not asked for, of what it sends as one, else of its address.

    Without their images. As long as they are known: see `GET /v1/jobs/{job_id}`.
    """
    found = await context.queue.jobs_of(tenant_of(request), limit=limit + 1, before=after)
    return JobList(data=[without_images(job) for job in found[:limit]], has_more=len(found) > limit)


@router.get("/{job_id}", summary="A job as it is now")
async def read(job_id: JobId, request: Request, caller: Caller, context: Context) -> JobObject:
    """Ended jobs stay for ten minutes, failed ones for a week."""
    return await job_object(await _find(job_id, caller, context), base_url(request), context)


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel(job_id: JobId, request: Request, caller: Caller, context: Context) -> JobObject:
    """Its samples leave the device before the next step; a job that has ended stays as it is."""
    await _find(job_id, caller, context)
    await context.queue.cancel(job_id)
    return await read(job_id, request, caller, context)


@router.get(
    "/{job_id}/events",
    summary="A job as it happens",
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."},
        204: {"description": "The last event was seen before; an EventSource then stops asking."},
    },
    response_class=Response,
)
async def events(
    job_id: JobId,
    request: Request,
    caller: Caller,
    context: Context,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that came; goes on from there.")
    ] = None,
) -> Response:
    """`queued` with the place in the queue, `progress` by stage and step, `partial_image` for each preview that was
    asked for, and at last the job with its images as `succeeded`, or as `failed`, `cancelled` or `expired`.

    Any server can go on where another one left off; a comment comes every 15 seconds. A new attempt, after a worker
    was lost, shows its previews again.
    """
    after = _event_id(last_event_id)
    job = await _find(job_id, caller, context)
    if after is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return EventStream(_events(job, after, base_url(request), context))


_LAST = "end"  # in place of a sequence: what comes after all previews


def _event_id(text: str | None) -> EventId | None:
    """None: the job's end was seen."""
    if text is None:
        return 0, 0
    found = re.fullmatch(rf"(\d{{1,15}})-(\d{{1,15}}|{_LAST})", text, re.ASCII)
    if found is None:
        raise InvalidRequest(
            f"Invalid Last-Event-ID: {shown(text)}. Allowed: the id of an event, such as 1-2.", param="Last-Event-ID"
        )
    return None if found[2] == _LAST else (int(found[1]), int(found[2]))


async def _events(job: JobRecord, after: EventId, base: str, context: ServerContext) -> AsyncIterator[bytes]:
    pulse, position, progress = Pulse(), None, None
    try:
        async with aclosing(context.watcher.follow(job.id, after)) as following:
            async for news in following:
                frames = [_preview(each, news.job) for each in news.previews]
                if news.position is not None and news.position != position:
                    frames.append(frame("queued", QueuedEvent(job_id=job.id, position=news.position)))
                if news.job.progress is not None and news.job.progress != progress:
                    frames.append(_progress(news.job, news.job.progress))
                if news.job.state.is_terminal:
                    ended = await job_object(news.job, base, context)
                    frames.append(frame(news.job.state, ended, f"{news.job.attempt}-{_LAST}"))
                position, progress = news.position, news.job.progress
                if beat := pulse.beat(frames):
                    yield beat
    except SchedulerError as error:
        yield error_frame(error)  # the caller comes back with Last-Event-ID


def _preview(stored: StoredPreview, job: JobRecord) -> bytes:
    event = PreviewEvent(
        job_id=job.id,
        index=stored.preview.index,
        partial_image_index=stored.preview.number,
        b64_json=b64encode(stored.file).decode(),
        output_format=job.spec.output_format,
    )
    attempt, sequence = stored.id
    return frame(event.type, event, f"{attempt}-{sequence}")


def _progress(job: JobRecord, progress: Progress) -> bytes:
    event = ProgressEvent(**progress.model_dump(), job_id=job.id, attempt=job.attempt, num_samples=job.spec.num_samples)
    return frame(event.type, event)


async def _find(job_id: str, caller: ApiKey | None, context: ServerContext) -> JobRecord:
    job = await context.queue.get(job_id)
    if job is None or not may_see(caller, job):
        raise JobNotFound(f"There is no job {shown(job_id)} (any more).", param="job_id")
    return job
