"""Notices that a worker gets at once about its own jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.connection import MAX_BLOCK_S, RedisClient, call


@dataclass(frozen=True)
class Notices:
    """Ids of jobs that were cancelled, and of jobs that a server began to watch."""

    cancelled: tuple[str, ...]
    watched: tuple[str, ...]


async def notices(redis: RedisClient, worker_id: str) -> AsyncIterator[Notices]:
    """Yield notices as they come, without end; raise `QueueUnavailable`. Lease renewals reveal missed cancellations."""
    last_ids = {f"{keys.NOTICES}{worker_id}": b"0-0", f"{keys.WATCHES}{worker_id}": b"0-0"}
    block_ms = round(MAX_BLOCK_S * 1000)
    while True:
        streams = await call(redis, "XREAD", "BLOCK", block_ms, "STREAMS", *last_ids, *last_ids.values())
        job_ids: dict[str, tuple[str, ...]] = {}
        for stream, entries in streams:
            last_ids[stream.decode()] = entries[-1][0]
            job_ids[stream.decode()] = tuple(entry[b"job"].decode() for _, entry in entries)
        cancelled, watched = (job_ids.get(stream, ()) for stream in last_ids)
        yield Notices(cancelled, watched)
