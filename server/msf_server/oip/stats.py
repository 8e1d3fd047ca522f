"""`GET /v1/stats`: what the page's strip shows, the service in the last minute as its workers told it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from msf_server.dependencies import Context
from msf_server.schemas import REFUSALS

router = APIRouter(tags=["health"])


class Stats(BaseModel):
    images_per_s: float = Field(description="Made in the last minute.")
    p50_ms: float | None = Field(
        description="Of the last minute's jobs, from admission to their end, at the slowest worker; null: none ended."
    )
    p99_ms: float | None
    jobs_queued: int
    jobs_running: int
    workers: int
    slots: int
    slots_in_use: int
    batch_fill: float | None = Field(description="Samples over rows in the latest step batches; null: there were none.")


@router.get("/v1/stats", summary="The service now", responses={503: REFUSALS[503], "default": REFUSALS["default"]})
async def stats(context: Context) -> Stats:
    models = [(model.name, model.version) for model in await context.catalog.models()]
    depths = await asyncio.gather(*(context.queue.depth(*model) for model in models))
    workers = await context.registry.loads()
    fills = [load.batch_fill for load in workers if load.batch_fill is not None]
    return Stats(
        images_per_s=sum(load.images_per_s for load in workers),
        p50_ms=max((load.p50_ms for load in workers if load.p50_ms is not None), default=None),
        p99_ms=max((load.p99_ms for load in workers if load.p99_ms is not None), default=None),
        jobs_queued=sum(depth.num_jobs_queued for depth in depths),
        jobs_running=sum(depth.num_jobs_running for depth in depths),
        workers=len(workers),
        slots=sum(load.num_slots for load in workers),
        slots_in_use=sum(load.num_slots_in_use for load in workers),
        batch_fill=sum(fills) / len(fills) if fills else None,
    )
