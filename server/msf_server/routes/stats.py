"""`GET /v1/stats`: throughput and load over the last minute, as the workers report them; shown on the page."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from msf_server.dependencies import CatalogDep, QueueDep, RegistryDep
from msf_server.errors import REFUSALS

router = APIRouter(tags=["health"])


class Stats(BaseModel):
    """Load of the service over the last minute, for the status page."""

    images_per_s: float = Field(description="Throughput over the last minute.")
    p50_ms: float | None = Field(
        description="Latency of the last minute's jobs from admission to end, at the slowest worker; null: none ended."
    )
    p99_ms: float | None
    jobs_queued: int
    jobs_running: int
    workers: int
    slots: int
    slots_in_use: int
    batch_fill: float | None = Field(description="Samples per row in the latest step batches; null: there were none.")


@router.get(
    "/v1/stats",
    operation_id="getStats",
    summary="Load of the service",
    responses={status: REFUSALS[status] for status in ("default", 429, 503)},
)
async def stats(catalog: CatalogDep, queue: QueueDep, registry: RegistryDep) -> Stats:
    """Report throughput, latency and queue depth over all workers."""
    models = [(model.name, model.version) for model in await catalog.models()]
    depths = await asyncio.gather(*(queue.depth(*model) for model in models))
    loads = await registry.loads()
    fills = [load.batch_fill for load in loads if load.batch_fill is not None]
    return Stats(
        images_per_s=sum(load.images_per_s for load in loads),
        p50_ms=max((load.p50_ms for load in loads if load.p50_ms is not None), default=None),
        p99_ms=max((load.p99_ms for load in loads if load.p99_ms is not None), default=None),
        jobs_queued=sum(depth.num_jobs_queued for depth in depths),
        jobs_running=sum(depth.num_jobs_running for depth in depths),
        workers=len(loads),
        slots=sum(load.num_slots for load in loads),
        slots_in_use=sum(load.num_slots_in_use for load in loads),
        batch_fill=sum(fills) / len(fills) if fills else None,
    )
