"""`/v1/jobs`: the same work without waiting for it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from msf_serve.scheduler.jobs import JobRecord, JobState
from msf_serve.scheduler.queue import new_job_id
from msf_serve.server.admission import admit, read_order
from msf_serve.server.context import Context, ServerContext
from msf_serve.server.errors import JobNotFound, shown
from msf_serve.server.gate import Caller, documented, may_see
from msf_serve.server.images import encoded
from msf_serve.server.keys import ApiKey
from msf_serve.server.metrics import MeasuredRoute
from msf_serve.server.schemas import REFUSALS, ImageRequest, JobObject

router = APIRouter(
    prefix="/v1/jobs", route_class=MeasuredRoute, tags=["jobs"], responses=REFUSALS, dependencies=[documented]
)


@router.post("", status_code=202, summary="Queue a job")
async def create(body: ImageRequest, request: Request, response: Response, context: Context) -> JobObject:
    """Answers at once; `Location` is where the job's state and, once it succeeded, its images are."""
    order = await read_order(body, request, context)
    job = await admit(order, context, job_id=new_job_id(), reply_to=None)
    request.state.job_id = job.id
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return await _shown(job, context)


@router.get("/{job_id}", summary="A job as it is now")
async def read(job_id: str, caller: Caller, context: Context) -> JobObject:
    """Ended jobs stay for ten minutes, failed ones for a week."""
    return await _shown(await _find(job_id, caller, context), context)


@router.delete("/{job_id}", summary="Cancel a job")
async def cancel(job_id: str, caller: Caller, context: Context) -> JobObject:
    """Its samples leave the device before the next step; a job that has ended stays as it is."""
    await _find(job_id, caller, context)
    await context.queue.cancel(job_id)
    return await read(job_id, caller, context)


async def _find(job_id: str, caller: ApiKey | None, context: ServerContext) -> JobRecord:
    job = await context.queue.get(job_id)
    if job is None or not may_see(caller, job):
        raise JobNotFound(f"There is no job {shown(job_id)} (any more).", param="job_id")
    return job


async def _shown(job: JobRecord, context: ServerContext) -> JobObject:
    images = await context.queue.images(job) if job.state is JobState.SUCCEEDED else []
    return JobObject(
        id=job.id,
        status=job.state,
        created_at=job.admitted_at,
        deadline_at=job.deadline_at,
        finished_at=job.finished_at,
        attempt=job.attempt,
        spec=job.spec,
        priority=job.terms.priority,
        timings=job.timings,
        provenance=job.provenance,
        error=job.error,
        data=encoded(images, job.spec) or None,
    )
