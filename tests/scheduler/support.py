"""What the scheduler's tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from msf_serve.scheduler.jobs import JobRecord, JobSpec, Timings
from msf_serve.scheduler.queue import Claim, JobQueue, new_job_id

MODEL, VERSION = "shapes", "1"
TIMINGS = Timings(queue_ms=1.5, base_ms=2, residual_ms=3, decode_ms=4, encode_ms=5, total_ms=16)


def spec(num_samples: int = 1, seed: int = 7, model: str = MODEL) -> JobSpec:
    return JobSpec(
        model=model,
        version=VERSION,
        label=3,
        num_samples=num_samples,
        seed=seed,
        num_steps=10,
        guidance_scale=1.1,
    )


async def admit(queue: JobQueue, num_samples: int = 1, reply_to: str | None = None) -> JobRecord:
    return await queue.admit(spec(num_samples), job_id=new_job_id(), reply_to=reply_to)


async def claim(queue: JobQueue, worker_id: str = "worker-1", max_samples: int = 1) -> list[Claim]:
    return await queue.claim(worker_id, MODEL, VERSION, max_samples)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  another process decides
            await asyncio.sleep(0.005)


async def until_blocked(redis: Redis, num_clients: int) -> None:
    """Wait until so many clients hang in a blocking read."""

    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) == num_clients

    await until(blocked)
