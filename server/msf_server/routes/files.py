"""`/v1/files`: a job's images at addresses of their own, which work without a key until they expire."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobRecord
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import ErrorResponse, Forbidden, JobNotFound

router = APIRouter(prefix="/v1/files", tags=["images"])


async def urls(job: JobRecord, base_url: str, context: ServerContext) -> list[str]:
    """One for each image of a job that has succeeded, for as long as its result is kept."""
    expires = int((job.finished_at or 0) + context.settings.result_ttl_s)
    paths = [f"{router.prefix}/{job.id}/{index}.{job.spec.output_format}" for index in job.spec.indices]
    return [
        f"{base_url}{path}?expires={expires}&signature={await context.url_signer.sign(path, expires)}" for path in paths
    ]


def base_url(request: Request) -> str:
    """As the caller sees this service, without a slash at its end."""
    return str(request.base_url).rstrip("/")


@router.get(
    "/{job_id}/{name}",
    summary="An image of a job",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}}, "description": "The file."},
        400: {"model": ErrorResponse, "description": "`expires` or `signature` is missing or wrong."},
        403: {"model": ErrorResponse, "description": "The address has expired, or nobody here signed it."},
        404: {"model": ErrorResponse, "description": "The result is not kept any more."},
        503: {"model": ErrorResponse, "description": "Redis is away."},
    },
)
async def read(
    job_id: Annotated[str, Path(description="The job that made it.")],
    name: Annotated[str, Path(description="The image's index and type, such as 0.png.")],
    request: Request,
    context: Context,
    expires: int = Query(description="Unix seconds."),
    signature: str = Query(description="Of the path and `expires`."),
) -> Response:
    """What `response_format: url` points to; whoever has the address may read the image."""
    if not await context.url_signer.is_signed(request.url.path, expires, signature):
        message = "Nobody here signed this address. Allowed: one from an answer, as it is."
        raise Forbidden(message, code=ErrorCode.INVALID_SIGNATURE)
    if time.time() > expires:
        raise Forbidden("This address has expired. Allowed: asking for the image again.", code=ErrorCode.URL_EXPIRED)
    job = await context.queue.get(job_id)
    images = await context.queue.images(job) if job else []
    if job is None or not images:
        raise JobNotFound("The image is not kept any more.", param="job_id")
    index = int(name.partition(".")[0])
    return Response(
        images[index - job.spec.first_index],
        media_type=f"image/{job.spec.output_format}",
        headers={
            "Cache-Control": f"private, immutable, max-age={expires - int(time.time())}",
            "Cross-Origin-Resource-Policy": "cross-origin",  # the address is leave enough to show it
        },
    )
