"""`POST /v1/images/generations`: OpenAI's image endpoint, over classes instead of sentences."""

from __future__ import annotations

import math
import re
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from msf_scheduler.jobs import JobRecord, Timings
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import InvalidRequest
from msf_server.image_stream import image_events
from msf_server.job_view import encoded, without_images
from msf_server.metrics import MeasuredRoute
from msf_server.middleware.auth import documented
from msf_server.orders import read_order
from msf_server.routes.files import base_url, urls
from msf_server.schemas import REFUSALS, Image, ImageRequest, ImagesResponse, JobObject
from msf_server.sse import EventStream
from msf_server.submission import Completed, begin, complete_within

router = APIRouter(route_class=MeasuredRoute, tags=["images"], dependencies=[documented])

_PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "respond-async, wait=10",
    "description": "`respond-async`: answer 202 with the job at once; `wait=N`: after N seconds (RFC 7240).",
}
_WAIT = re.compile(r"wait=(\d{1,6})", re.ASCII)


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    responses={
        **REFUSALS,
        200: {"content": {"text/event-stream": {}}, "description": "The images; with `stream`, as server-sent events."},
        202: {"model": JobObject, "description": "With `Prefer`: the job goes on; `Location` is where to ask."},
    },
    openapi_extra={"parameters": [_PREFER]},
    summary="Make images of a class",
)
async def generate(body: ImageRequest, request: Request, response: Response, context: Context) -> object:
    """Waits for the images. The same seed, steps, guidance scale and model version make the same images.

    A caller that disconnects cancels its work at the next step, unless `on_disconnect` or an `Idempotency-Key` says
    otherwise: the same key and body then get the same job's images. Who sends `Prefer: respond-async` or `wait=N`
    (RFC 7240) is answered with the job, at once or after N seconds.
    """
    if body.stream and body.response_format == "url":
        raise InvalidRequest(
            'Invalid response_format: "url". Allowed with stream: "b64_json".', param="response_format"
        )
    patience_s = _patience_s(request)
    order = await read_order(body, request, context, finish_alone=patience_s < math.inf)
    if body.stream:
        job = await begin(order, context, request)
        return EventStream(image_events(body, job, order, context, request))
    done = await complete_within(patience_s, order, context, request)
    if isinstance(done, JobRecord):
        return _accepted(done, request)
    context.metrics.observe_images(order.model, len(done.images), cached=done.is_cached)
    response.headers["Server-Timing"] = _server_timing(done.timings)
    spec, made = done.job.spec, done.job.provenance
    return ImagesResponse(
        created=int(done.finished_at),
        data=await _data(body, done, request, context),
        model=spec.model,
        version=spec.version,
        seed=spec.seed,
        num_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        output_format=spec.output_format,
        job_id=done.job.id,
        cached=done.is_cached,
        reproducibility=made.reproducibility if made else None,
        fingerprint=made.fingerprint if made else None,
        timings=done.timings,
    )


async def _data(body: ImageRequest, done: Completed, request: Request, context: ServerContext) -> list[Image]:
    spec = done.job.spec
    if body.response_format != "url":
        return encoded(done.images, spec)
    addresses = await urls(done.job, base_url(request), context)
    return [Image(url=url, index=index) for url, index in zip(addresses, spec.indices, strict=True)]


def _patience_s(request: Request) -> float:
    """How long the caller waits: to the end, unless it says otherwise.

    What else is preferred, or malformed, is passed over, as RFC 7240 wants it.
    """
    preferences = [item.strip().lower() for item in ",".join(request.headers.getlist("prefer")).split(",")]
    waits = [float(found[1]) for item in preferences if (found := _WAIT.fullmatch(item))]
    if waits:
        return waits[0]
    return 0.0 if "respond-async" in preferences else math.inf


def _accepted(job: JobRecord, request: Request) -> JSONResponse:
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": request.headers["prefer"]}
    return JSONResponse(without_images(job).model_dump(mode="json"), HTTPStatus.ACCEPTED, headers)


def _server_timing(timings: Timings) -> str:
    return ", ".join(f"{name.removesuffix('_ms')};dur={value:.3f}" for name, value in timings)
