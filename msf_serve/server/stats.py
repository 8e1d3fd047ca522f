"""`GET /v1/stats`: what the page's strip shows, this server's last minute and what its workers do now."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from pydantic import BaseModel, Field

from msf_serve.server.context import Context
from msf_serve.server.metrics import RECENT_S
from msf_serve.server.schemas import REFUSALS

router = APIRouter(tags=["health"])


class Stats(BaseModel):
    window_s: float = Field(description="What the rates and latencies are over.")
    requests_per_s: float = Field(description="That succeeded at this server.")
    images_per_s: float
    p50_ms: float | None = Field(description="Of these requests; null: there were none.")
    p99_ms: float | None
    jobs_queued: int = Field(description="In the whole service, as are the following.")
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
    recent = context.metrics.recent.now()
    fills = [load.batch_fill for load in workers if load.batch_fill is not None]
    return Stats(
        window_s=RECENT_S,
        requests_per_s=recent.num_requests / RECENT_S,
        images_per_s=recent.num_images / RECENT_S,
        p50_ms=recent.quantile_ms(0.5),
        p99_ms=recent.quantile_ms(0.99),
        jobs_queued=sum(depth.num_jobs_queued for depth in depths),
        jobs_running=sum(depth.num_jobs_running for depth in depths),
        workers=len(workers),
        slots=sum(load.num_slots for load in workers),
        slots_in_use=sum(load.num_slots_in_use for load in workers),
        batch_fill=sum(fills) / len(fills) if fills else None,
    )
