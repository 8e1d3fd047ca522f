"""`/v1/jobs`: the same work, asynchronously."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import WithJsonSchema

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import SchedulerError
from msf_scheduler.job_events import EventId, JobWatcher, StoredPreview
from msf_scheduler.jobs import JobRecord, JobState, Progress
from msf_scheduler.queue import JobQueue
from msf_server.callers import identify, routing_key_of
from msf_server.dependencies import CallerDep, CatalogDep, DrainDep, QueueDep, WatcherDep, services_of
from msf_server.drain import Drain
from msf_server.errors import REFUSALS, ApiError, InvalidRequest, quoted
from msf_server.large_results import off_loop_if_large, write_answer
from msf_server.measured_route import MeasuredRoute
from msf_server.middleware.auth import bearer_auth
from msf_server.middleware.caller_limits import open_stream
from msf_server.model_choice import choose_model
from msf_server.openapi import stream_of
from msf_server.orders import make_order
from msf_server.request_log import log_of
from msf_server.schemas.images import ImageRequest
from msf_server.schemas.jobs import JobList, JobObject, PreviewEvent, ProgressEvent, QueuedEvent
from msf_server.sse import error_frame, event_stream, frame

router = APIRouter(
    prefix="/v1/jobs", route_class=MeasuredRoute, tags=["jobs"], responses=REFUSALS, dependencies=[bearer_auth]
)

MAX_LISTED = 100
_LAST = "end"  # in place of a sequence number: sorts after all previews
_EVENT_ID = rf"^([0-9]{{1,15}})-([0-9]{{1,15}}|{_LAST})$"
JobId = Annotated[str, Path(description="From the answer to `POST /v1/jobs`.")]


class JobReader:
    """Reads jobs that the caller may see, with their images inline and as URLs."""

    def __init__(self, request: Request) -> None:
        services = services_of(request)
        self._request = request
        self._queue: JobQueue = services.queue
        self._catalog = services.catalog
        self._url_signer = services.url_signer

    async def find(self, job_id: str) -> JobRecord:
        """Return a job. Raises InvalidRequest for an unknown job or another tenant's."""
        return self._visible(await self._queue.get(job_id), job_id)

    async def read(self, job_id: str) -> tuple[JobRecord, list[bytes]]:
        """Return a job and its images. Raises as `find` does."""
        job, files = await self._queue.read(job_id) or (None, [])
        return self._visible(job, job_id), files

    def _visible(self, job: JobRecord | None, job_id: str) -> JobRecord:
        if job is None or not identify(self._request).may_see(job):
            raise InvalidRequest(
                f"Unknown job {quoted(job_id)}; ended jobs are kept for a while.",
                param="job_id",
                code=ErrorCode.JOB_NOT_FOUND,
            )
        return job

    async def describe(self, job: JobRecord, files: list[bytes]) -> bytes:
        """Return the answer about a job as JSON."""
        models = await self._catalog.models()
        if job.state is not JobState.SUCCEEDED or not files:
            return JobObject.of(job, models).model_dump_json().encode()
        urls = await self._url_signer.image_urls(job, self._request)
        return await write_answer(JobObject.of(job, models, has_images=True), job, files, urls)


async def _job_reader(request: Request) -> JobReader:
    return JobReader(request)


JobReaderDep = Annotated[JobReader, Depends(_job_reader)]


@router.post(
    "", operation_id="createJob", status_code=HTTPStatus.ACCEPTED, response_model=JobObject, summary="Queue a job"
)
async def create(body: ImageRequest, request: Request) -> Response:
    """Answer at once; `Location` is the URL of the job's state and, after its success, its images."""
    if body.stream:
        message = "Invalid stream: true. Allowed: false; /v1/jobs/{id}/events streams the events of a job."
        raise InvalidRequest(message, param="stream")
    services, log = services_of(request), log_of(request.scope)
    log.model = model = await choose_model(body, services.catalog, routing_key_of(request))
    order = make_order(
        body,
        model,
        services.catalog.availability(model),
        identify(request),
        services.settings,
        idempotency_key=request.headers.get("idempotency-key"),
    )
    job = (await services.submission.submit(order, log)).job
    jobs = JobReader(request)
    files: list[bytes] = []
    if job.state is JobState.SUCCEEDED:
        job, files = await jobs.read(job.id)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return Response(await jobs.describe(job, files), HTTPStatus.ACCEPTED, headers, "application/json")


@router.get("", operation_id="listJobs", summary="List your jobs, newest first")
async def list_jobs(
    caller: CallerDep,
    queue: QueueDep,
    catalog: CatalogDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="Most jobs in one page.")] = 20,
    after: Annotated[str | None, Query(description="Id of the last job of the previous page.")] = None,
) -> JobList:
    """Jobs of the caller's API key; without key checks, of the key that it sends or else of its address.

    The list omits images. For how long jobs are kept: see `GET /v1/jobs/{job_id}`.
    """
    jobs = await queue.jobs_of(caller.tenant, limit=limit + 1, before=after)
    models = await catalog.models()
    return JobList(data=[JobObject.of(job, models) for job in jobs[:limit]], has_more=len(jobs) > limit)


@router.get("/{job_id}", operation_id="getJob", response_model=JobObject, summary="Get a job")
async def read(job_id: JobId, jobs: JobReaderDep) -> Response:
    """Report a job's state, progress and result. Ended jobs are kept for ten minutes, failed ones for a week."""
    return Response(await jobs.describe(*await jobs.read(job_id)), media_type="application/json")


@router.delete("/{job_id}", operation_id="cancelJob", response_model=JobObject, summary="Cancel a job")
async def cancel(job_id: JobId, jobs: JobReaderDep, queue: QueueDep) -> Response:
    """Its samples leave the device before the next step; a job that has ended stays unchanged."""
    await jobs.find(job_id)
    await queue.cancel(job_id)
    return Response(await jobs.describe(*await jobs.read(job_id)), media_type="application/json")


@router.get(
    "/{job_id}/events",
    operation_id="streamJobEvents",
    summary="Follow a job",
    responses={
        200: {"content": stream_of("JobEvent"), "description": "Server-sent events."},
        204: {"description": "The last event was received before; an EventSource then stops reconnecting."},
    },
    response_class=Response,
)
async def events(
    request: Request,
    job_id: JobId,
    jobs: JobReaderDep,
    watcher: WatcherDep,
    drain: DrainDep,
    last_event_id: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "pattern": _EVENT_ID}),
        Header(description="Id of the last event received; the stream resumes after it."),
    ] = None,
) -> Response:
    """Stream the events of a job until its end.

    `queued` has the position in the queue, `progress` the stage and step, `partial_image` a preview that was requested;
    the last event is the job with its images as `succeeded`, or `failed`, `cancelled` or `expired`.

    Any server can resume the stream of another; a comment is sent every 15 seconds. After a worker was lost, the next
    attempt sends its previews again.
    """
    after = _event_id(last_event_id)
    job = await jobs.find(job_id)
    if after is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    open_stream(request.scope, job.id)
    return event_stream(_events(job.id, after, jobs, watcher, drain))


def _event_id(text: str | None) -> EventId | None:
    """Parse `Last-Event-ID`; None means that the end of the job was received."""
    if text is None:
        return 0, 0
    match = re.fullmatch(_EVENT_ID, text, re.ASCII)
    if match is None:
        raise InvalidRequest(
            f"Invalid Last-Event-ID: {quoted(text)}. Allowed: the id of an event, such as 1-2.", param="Last-Event-ID"
        )
    return None if match[2] == _LAST else (int(match[1]), int(match[2]))


async def _events(
    job_id: str, after: EventId, jobs: JobReader, watcher: JobWatcher, drain: Drain
) -> AsyncGenerator[bytes, None]:
    position, progress = None, None
    try:
        async with aclosing(watcher.follow(job_id, after)) as reports:
            async for report in reports:
                job = report.job
                if not job.state.is_terminal:
                    drain.check_begun()
                frames = [_preview(preview, job) for preview in report.previews]
                if report.position is not None and report.position != position:
                    frames.append(frame("queued", QueuedEvent(job_id=job_id, position=report.position)))
                if job.progress is not None and job.progress != progress:
                    frames.append(_progress(job, job.progress))
                yield b"".join(frames)
                if job.state.is_terminal:
                    answer = await jobs.describe(*await jobs.read(job_id))
                    event = partial(frame, job.state, answer, f"{job.attempt}-{_LAST}")
                    yield await off_loop_if_large([answer], event)
                position, progress = report.position, job.progress
    except (ApiError, SchedulerError) as error:
        yield error_frame(error)  # the client reconnects with Last-Event-ID


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
