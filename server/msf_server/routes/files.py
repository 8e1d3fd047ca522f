"""`/v1/files`: images at signed URLs, which work without a key until they expire."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from msf_scheduler.error_codes import ErrorCode
from msf_server.dependencies import QueueDep, UrlSignerDep
from msf_server.errors import ErrorResponse, InvalidRequest
from msf_server.signed_urls import FILES, image_path

router = APIRouter(prefix=FILES, tags=["images"])


@router.get(
    "/{job_id}/{name}",
    operation_id="getImageFile",
    summary="Get an image of a job",
    response_class=Response,
    responses={
        200: {"content": {"image/png": {}, "image/webp": {}, "image/jpeg": {}}, "description": "The file."},
        400: {"model": ErrorResponse, "description": "`expires` or `signature` is missing or malformed."},
        403: {"model": ErrorResponse, "description": "The URL has expired, or its signature is invalid."},
        404: {"model": ErrorResponse, "description": "The result is no longer kept."},
        503: {"model": ErrorResponse, "description": "Redis is unreachable."},
        "default": {"model": ErrorResponse, "description": "Another error."},
    },
)
async def read(
    job_id: Annotated[str, Path(description="The job that made the image.")],
    name: Annotated[str, Path(description="Index and type of the image, such as 0.png.")],
    queue: QueueDep,
    url_signer: UrlSignerDep,
    expires: int = Query(description="Unix seconds."),
    signature: str = Query(description="Of the path and `expires`."),
) -> Response:
    """Target of `response_format: url`; whoever has the URL may read the image."""
    if not await url_signer.is_signed(image_path(job_id, name), expires, signature):
        message = "Invalid URL signature; use the URL exactly as returned."
        raise InvalidRequest(message, code=ErrorCode.INVALID_SIGNATURE)
    lifetime_s = await url_signer.lifetime_s(expires)
    if lifetime_s < 0:
        raise InvalidRequest("This URL has expired; request the image again.", code=ErrorCode.URL_EXPIRED)
    job = await queue.get(job_id)
    file = await queue.image(job, int(name.partition(".")[0])) if job else None
    if job is None or file is None:
        raise InvalidRequest("The image is no longer kept.", param="job_id", code=ErrorCode.JOB_NOT_FOUND)
    return Response(
        file,
        media_type=f"image/{job.spec.output_format}",
        headers={
            "Cache-Control": f"private, immutable, max-age={lifetime_s}",
            "Cross-Origin-Resource-Policy": "cross-origin",  # the URL alone is permission to show the image
        },
    )
