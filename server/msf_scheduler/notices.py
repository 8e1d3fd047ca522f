"""Notices that a worker gets at once about its own jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.connection import MAX_BLOCK_S, RedisClient, call_blocking
from msf_scheduler.jobs import Terms


@dataclass(frozen=True)
class Notices:
    """Ids of jobs that were cancelled, and of jobs that a server began to watch.

    `raised`: terms under which running jobs are to be served from now on (`Terms.served_as`), by job id, because an
    identical job would be served by now.
    """

    cancelled: tuple[str, ...]
    watched: tuple[str, ...]
    raised: Mapping[str, Terms]


async def notices(redis: RedisClient, worker_id: str) -> AsyncIterator[Notices]:
    """Yield notices as they come, without end; raise `QueueUnavailable`. Lease renewals reveal missed cancellations."""
    notices_key, watches_key = f"{keys.NOTICES}{worker_id}", f"{keys.WATCHES}{worker_id}"
    last_ids = {notices_key: b"0-0", watches_key: b"0-0"}
    block_ms = round(MAX_BLOCK_S * 1000)
    while True:
        streams = await call_blocking(redis, "XREAD", "BLOCK", block_ms, "STREAMS", *last_ids, *last_ids.values())
        entries: dict[str, list[dict[bytes, bytes]]] = {notices_key: [], watches_key: []}
        for stream, items in streams:
            last_ids[stream.decode()] = items[-1][0]
            entries[stream.decode()] = [entry for _, entry in items]
        yield Notices(
            cancelled=tuple(entry[b"job"].decode() for entry in entries[notices_key] if b"terms" not in entry),
            watched=tuple(entry[b"job"].decode() for entry in entries[watches_key]),
            raised={
                entry[b"job"].decode(): Terms.model_validate_json(entry[b"terms"])
                for entry in entries[notices_key]
                if b"terms" in entry
            },
        )
