"""`POST /v1/images/generations`: OpenAI's image endpoint, with class names as prompts."""

from __future__ import annotations

import math
import re
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from msf_scheduler.jobs import JobRecord, ModelInfo, Timings
from msf_server.callers import identify, routing_key_of
from msf_server.dependencies import services_of
from msf_server.errors import REFUSALS, InvalidRequest
from msf_server.image_stream import image_events
from msf_server.large_results import write_answer
from msf_server.measured_route import MeasuredRoute
from msf_server.middleware.auth import bearer_auth
from msf_server.middleware.caller_limits import open_stream
from msf_server.model_choice import choose_model
from msf_server.openapi import stream_of
from msf_server.orders import make_order
from msf_server.request_log import log_of
from msf_server.schemas.images import ImageRequest, ImagesResponse
from msf_server.schemas.jobs import JobObject
from msf_server.sse import event_stream

router = APIRouter(route_class=MeasuredRoute, tags=["images"], dependencies=[bearer_auth])

_PREFER = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "example": "respond-async, wait=10",
    "description": "`respond-async`: answer 202 with the job at once; `wait=N`: after N seconds (RFC 7240).",
}
_ASYNC = "respond-async"
_WAIT = re.compile(r"wait=(\d{1,6})", re.ASCII)


@router.post(
    "/v1/images/generations",
    operation_id="createImage",
    response_model=ImagesResponse,
    responses={
        **REFUSALS,
        200: {
            "content": stream_of("ImageStreamEvent"),
            "description": "The images; with `stream`, as server-sent events.",
        },
        202: {"model": JobObject, "description": "With `Prefer`: the job continues; `Location` is its URL."},
    },
    openapi_extra={"parameters": [_PREFER]},
    summary="Generate images of a class",
)
async def generate(body: ImageRequest, request: Request) -> Response:
    """Wait for the images. The same seed, steps, guidance scale and model version give the same images.

    When the caller disconnects, its job is cancelled at the next step, unless `on_disconnect` or an `Idempotency-Key`
    says otherwise: a repeated key and body return the same job's images. With `Prefer: respond-async` or `wait=N`
    (RFC 7240), the answer is the job, at once or after N seconds.
    """
    if body.stream and body.response_format == "url":
        raise InvalidRequest(
            'Invalid response_format: "url". Allowed with stream: "b64_json".', param="response_format"
        )
    services, log = services_of(request), log_of(request.scope)
    patience_s = _patience_s(request)
    log.model = model = await choose_model(body, services.catalog, routing_key_of(request))
    order = make_order(
        body,
        model,
        services.catalog.availability(model),
        identify(request),
        services.settings,
        idempotency_key=request.headers.get("idempotency-key"),
        finish_alone=patience_s < math.inf,
    )
    if body.stream:
        open_stream(request.scope)
    pending = await services.submission.submit(order, log, notify=not body.stream)
    if body.stream:
        return event_stream(image_events(body, pending, services.submission, services.watcher, log, services.metrics))
    job, files = await services.submission.wait(pending, request, patience_s)
    if not job.state.is_terminal:
        return _accepted(job, model, request)
    urls = [] if body.response_format == "b64_json" else await services.url_signer.image_urls(job, request)
    inline = [] if body.response_format == "url" else files
    headers = {"Server-Timing": _server_timing(job.timings)}
    answer = await write_answer(ImagesResponse.of(job, model), job, inline, urls)
    return Response(answer, headers=headers, media_type="application/json")


def _preferences(request: Request) -> list[str]:
    """Return the preferences that this server knows; others and malformed ones are ignored (RFC 7240)."""
    items = [item.strip().lower() for item in ",".join(request.headers.getlist("prefer")).split(",")]
    return [item for item in items if item == _ASYNC or _WAIT.fullmatch(item)]


def _patience_s(request: Request) -> float:
    """Return how long the caller wants to wait."""
    preferences = _preferences(request)
    waits = [float(match[1]) for item in preferences if (match := _WAIT.fullmatch(item))]
    if waits:
        return waits[0]
    return 0.0 if preferences else math.inf


def _accepted(job: JobRecord, model: ModelInfo, request: Request) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", "Preference-Applied": ", ".join(_preferences(request))}
    return Response(JobObject.of(job, [model]).model_dump_json(), HTTPStatus.ACCEPTED, headers, "application/json")


def _server_timing(timings: Timings | None) -> str:
    return ", ".join(f"{name.removesuffix('_ms')};dur={value:.3f}" for name, value in timings or ())
