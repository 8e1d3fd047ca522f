"""Memory and disk use of the Redis that holds the jobs."""

from __future__ import annotations

from dataclasses import dataclass

from msf_scheduler.connection import RedisClient, server_info


@dataclass(frozen=True)
class Storage:
    """Memory and disk use. `memory_limit_bytes` and `aof_bytes` are 0 without a limit or an append-only file.

    Not `aof_ok`: the last write or rewrite of the append-only file failed, as on a full disk, and Redis refuses writes.
    """

    memory_bytes: int
    memory_limit_bytes: int
    aof_bytes: int
    aof_ok: bool


async def read_storage(redis: RedisClient) -> Storage:
    """Return the current use; raise `QueueUnavailable`."""
    info = await server_info(redis, "memory", "persistence")
    return Storage(
        memory_bytes=info["used_memory"],
        memory_limit_bytes=info["maxmemory"],
        aof_bytes=info.get("aof_current_size", 0),
        aof_ok=(info["aof_last_write_status"], info["aof_last_bgrewrite_status"]) == ("ok", "ok"),
    )
