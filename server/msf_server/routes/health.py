"""Health checks under the Open Inference Protocol's paths, and `/metrics`."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client.exposition import choose_encoder

from msf_scheduler.connection import RedisClient
from msf_scheduler.errors import SchedulerError
from msf_scheduler.queue import JobQueue
from msf_scheduler.redis_info import read_storage
from msf_scheduler.registry import Registry
from msf_server.catalog import Catalog
from msf_server.dependencies import CatalogDep, KeyRingDep, MetricsDep, QueueDep, RedisDep, RegistryDep, SubmissionDep
from msf_server.errors import translate
from msf_server.metrics import SharedState

router = APIRouter(tags=["health"])


@router.get("/v2/health/live", operation_id="checkServerLive", summary="Check that this process is alive")
async def live() -> dict[str, bool]:
    """Report that the process answers."""
    return {"live": True}


@router.get(
    "/v2/health/ready",
    operation_id="checkServerReady",
    summary="Check that a request can be served now",
    responses={503: {"description": "Not ready; the body gives the reason."}},
)
async def ready(submission: SubmissionDep, registry: RegistryDep, catalog: CatalogDep, redis: RedisDep) -> JSONResponse:
    """Answer 200 if Redis can store a job, a live worker serves a model and this server is not draining; else 503.

    If operators have unloaded every model, a live worker is enough: models can be loaded.
    """
    is_draining = submission.drain.has_begun
    reason = "This server is shutting down." if is_draining else await _unready(registry, catalog, redis)
    if reason is None:
        return JSONResponse({"ready": True})
    return JSONResponse({"ready": False, "error": reason}, 503, headers={"Retry-After": "5"})


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics in Prometheus's text format",
    response_class=PlainTextResponse,
)
async def metrics(
    request: Request,
    metrics: MetricsDep,
    keys: KeyRingDep,
    catalog: CatalogDep,
    queue: QueueDep,
    registry: RegistryDep,
    redis: RedisDep,
) -> Response:
    """Jobs, workers and storage are read from Redis; without it they are absent or NaN, and msf_redis_up is 0.

    Scrapers that accept OpenMetrics get it, with the ids of traces as exemplars.
    """
    if keys is not None:
        metrics.show_keys(keys.keys())
    try:
        metrics.set_shared(await _shared_state(catalog, queue, registry, redis))
    except SchedulerError:
        metrics.set_shared(None)
    generate, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(await asyncio.to_thread(generate, metrics.registry), media_type=content_type)


async def _shared_state(catalog: Catalog, queue: JobQueue, registry: Registry, redis: RedisClient) -> SharedState:
    models = [(model.name, model.version) for model in await catalog.models()]
    started_at = time.perf_counter()
    storage = await read_storage(redis)
    round_trip_s = time.perf_counter() - started_at
    depths = await asyncio.gather(*(queue.depth(*model) for model in models))
    workers = await registry.workers()
    return SharedState(dict(zip(models, depths, strict=True)), len(workers), storage, round_trip_s)


async def _unready(registry: Registry, catalog: Catalog, redis: RedisClient) -> str | None:
    """Return why no request can be served, or None if a worker serves a model."""
    try:
        workers, storage = await asyncio.gather(registry.workers(), read_storage(redis))
        if storage.is_full:
            return "The job store is full: it accepts no jobs until results expire, or the operator makes room."
        if not workers:
            return "No live worker is registered."
        if any(worker.models for worker in workers):
            return None
        await catalog.refresh()
        models = [model for model in await catalog.models() if catalog.is_loaded(model)]
    except SchedulerError as error:
        return str(translate(error).detail)
    return "No worker serves a model; the repository index says why." if models or catalog.refused() else None
