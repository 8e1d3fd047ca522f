"""How a worker learns at once that a job of its was cancelled, instead of at its next renewal."""

from __future__ import annotations

from collections.abc import AsyncIterator

from redis.asyncio import Redis

from msf_serve.scheduler import keys
from msf_serve.scheduler.connection import MAX_BLOCK_S, call


async def cancelled_jobs(redis: Redis, worker_id: str) -> AsyncIterator[list[str]]:
    """The ids of cancelled jobs, as they come, for ever. Raises `QueueUnavailable`; renewals tell what was missed."""
    last_id = b"0-0"
    while True:
        block_ms = round(MAX_BLOCK_S * 1000)
        streams = await call(redis, "XREAD", "BLOCK", block_ms, "STREAMS", keys.notices(worker_id), last_id)
        for _, entries in streams:
            last_id = entries[-1][0]
            yield [entry[b"job"].decode() for _, entry in entries]
