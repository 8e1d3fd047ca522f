"""`POST /v1/images/generations`: OpenAI's image endpoint, over classes instead of sentences."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from msf_serve.scheduler.jobs import JobSpec, Timings
from msf_serve.server.admission import read_order
from msf_serve.server.completion import complete
from msf_serve.server.context import Context
from msf_serve.server.gate import documented
from msf_serve.server.metrics import MeasuredRoute
from msf_serve.server.schemas import REFUSALS, Image, ImageRequest, ImagesResponse

router = APIRouter(route_class=MeasuredRoute, tags=["images"], dependencies=[documented])


@router.post("/v1/images/generations", responses=REFUSALS, summary="Make images of a class")
async def generate(body: ImageRequest, request: Request, response: Response, context: Context) -> ImagesResponse:
    """Waits for the images. The same seed, steps, guidance scale and model version make the same images.

    A caller that disconnects cancels its work at the next step, unless `on_disconnect` or an `Idempotency-Key` says
    otherwise: the same key and body then get the same job's images.
    """
    order = await read_order(body, request, context)
    done = await complete(order, context, request)
    is_cached = done.job.images_of is not None
    context.metrics.observe_images(order.model, len(done.images), cached=is_cached)
    response.headers["Server-Timing"] = _server_timing(done.timings)
    spec, made = done.job.spec, done.job.provenance
    return ImagesResponse(
        created=int(done.finished_at),
        data=encoded(done.images, spec),
        model=spec.model,
        version=spec.version,
        seed=spec.seed,
        num_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        output_format=spec.output_format,
        job_id=done.job.id,
        cached=is_cached,
        reproducibility=made.reproducibility if made else None,
        fingerprint=made.fingerprint if made else None,
        timings=done.timings,
    )


def encoded(images: Sequence[bytes], spec: JobSpec) -> list[Image]:
    return [
        Image(b64_json=b64encode(image).decode(), index=index)
        for index, image in zip(spec.indices, images, strict=False)
    ]


def _server_timing(timings: Timings) -> str:
    return ", ".join(f"{name.removesuffix('_ms')};dur={value:.3f}" for name, value in timings)
