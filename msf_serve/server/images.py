"""`POST /v1/images/generations`: OpenAI's image endpoint, over classes instead of sentences."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from fastapi import APIRouter, Request, Response

from msf_serve.scheduler.jobs import ModelInfo, Timings
from msf_serve.server.completion import complete
from msf_serve.server.context import Context, ServerContext
from msf_serve.server.errors import Unavailable
from msf_serve.server.metrics import MeasuredRoute
from msf_serve.server.resolve import resolve
from msf_serve.server.schemas import ErrorResponse, Image, ImageRequest, ImagesResponse

router = APIRouter(route_class=MeasuredRoute, tags=["images"])

_REFUSALS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Every error has this shape."},
    400: {
        "model": ErrorResponse,
        "description": "A field or the body is wrong; the message says what is allowed.",
    },
    404: {"model": ErrorResponse, "description": "No such model or version."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    429: {"model": ErrorResponse, "description": "The queue is full; `Retry-After` says when to ask again."},
    499: {"model": ErrorResponse, "description": "The job was cancelled by someone else."},
    500: {"model": ErrorResponse, "description": "The job failed; `code` says how."},
    503: {"model": ErrorResponse, "description": "Draining, Redis is away, or no worker serves the model."},
    504: {"model": ErrorResponse, "description": "The job did not end in time and was cancelled."},
}


@router.post("/v1/images/generations", responses=_REFUSALS, summary="Make images of a class")
async def generate(body: ImageRequest, request: Request, response: Response, context: Context) -> ImagesResponse:
    """Waits for the images. The same seed, steps, guidance scale and model version make the same images.

    A caller that disconnects cancels its work at the next step.
    """
    model = request.state.model = await context.catalog.find(body.model)
    spec = resolve(body, model, context.settings.max_images_per_request)
    _refuse_unless_serving(context, model)
    job = await complete(spec, context, request)
    context.metrics.observe_job(model, job.timings, len(job.images))
    response.headers["Server-Timing"] = _server_timing(job.timings)
    return ImagesResponse(
        created=int(job.finished_at),
        data=[Image(b64_json=b64encode(image).decode(), index=index) for index, image in enumerate(job.images)],
        model=model.name,
        version=model.version,
        seed=spec.seed,
        num_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        output_format=spec.output_format,
        job_id=job.job_id,
        timings=job.timings,
    )


def _refuse_unless_serving(context: ServerContext, model: ModelInfo) -> None:
    if context.draining:
        raise Unavailable("This server is shutting down.", code="draining")
    if not context.catalog.is_served(model):
        raise Unavailable(f"No worker serves {model.name}:{model.version} now.", code="no_worker")


def _server_timing(timings: Timings) -> str:
    return ", ".join(f"{name.removesuffix('_ms')};dur={value:.3f}" for name, value in timings)
