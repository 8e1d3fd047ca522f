"""How a worker learns at once what concerns a job of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import MAX_BLOCK_S, call


@dataclass(frozen=True)
class Notices:
    """Ids of jobs that were cancelled, and of jobs that somebody began to watch."""

    cancelled: tuple[str, ...]
    watched: tuple[str, ...]


async def notices(redis: Redis, worker_id: str) -> AsyncIterator[Notices]:
    """As they come, for ever. Raises `QueueUnavailable`; renewals tell which cancellations were missed."""
    last_ids = {keys.notices(worker_id): b"0-0", keys.watches(worker_id): b"0-0"}
    while True:
        block_ms = round(MAX_BLOCK_S * 1000)
        streams = await call(redis, "XREAD", "BLOCK", block_ms, "STREAMS", *last_ids, *last_ids.values())
        told: dict[str, tuple[str, ...]] = {}
        for stream, entries in streams:
            last_ids[stream.decode()] = entries[-1][0]
            told[stream.decode()] = tuple(entry[b"job"].decode() for _, entry in entries)
        cancelled, watched = (told.get(stream, ()) for stream in last_ids)
        yield Notices(cancelled, watched)
