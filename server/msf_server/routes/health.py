"""What orchestrators and Prometheus ask: health in the Open Inference Protocol's words, and /metrics."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from msf_scheduler.errors import SchedulerError
from msf_scheduler.redis_info import read_storage
from msf_server.dependencies import Context, ServerContext
from msf_server.metrics import Shared

router = APIRouter(tags=["health"])


@router.get("/v2/health/live", summary="Is this process alive")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get(
    "/v2/health/ready",
    summary="Can a request be served now",
    responses={503: {"description": "Not now; the body says why."}},
)
async def ready(context: Context) -> JSONResponse:
    """200 if Redis answers, a live worker is registered and this server stays; else 503 and why."""
    reason = await _unreadiness(context)
    if reason is None:
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "error": reason}, 503, headers={"Retry-After": "5"})


@router.get("/metrics", summary="Metrics in Prometheus's text format", response_class=Response)
async def metrics(context: Context) -> Response:
    """Jobs, workers and storage come from Redis; without it they are absent or NaN, and msf_redis_up is 0."""
    try:
        context.metrics.set_shared(await _shared(context))
    except SchedulerError:
        context.metrics.set_shared(None)
    return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _shared(context: ServerContext) -> Shared:
    models = [(model.name, model.version) for model in await context.catalog.models()]
    started_at = time.perf_counter()
    storage = await read_storage(context.redis)
    round_trip_s = time.perf_counter() - started_at
    depths = await asyncio.gather(*(context.queue.depth(*model) for model in models))
    workers = await context.registry.workers()
    return Shared(dict(zip(models, depths, strict=True)), len(workers), storage, round_trip_s)


async def _unreadiness(context: ServerContext) -> str | None:
    if context.draining:
        return "This server is shutting down."
    try:
        workers = await context.registry.workers()
    except SchedulerError as error:
        return str(error)
    return None if workers else "No live worker is registered."
