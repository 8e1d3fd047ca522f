"""What Redis tells of the memory and the disk that accepted jobs live in."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler.connection import call


@dataclass(frozen=True)
class Storage:
    """`memory_limit_bytes` and `aof_bytes` are 0 where there is no limit or no append-only file.

    Not `aof_ok`: the last write to the append-only file, or its last rewrite, failed, as on a full disk; Redis then
    refuses every write.
    """

    memory_bytes: int
    memory_limit_bytes: int
    aof_bytes: int
    aof_ok: bool


async def read_storage(redis: Redis) -> Storage:
    """Raises QueueUnavailable."""
    told = await call(redis, "INFO", "memory", "persistence")
    return Storage(
        memory_bytes=told["used_memory"],
        memory_limit_bytes=told["maxmemory"],
        aof_bytes=told.get("aof_current_size", 0),
        aof_ok=(told["aof_last_write_status"], told["aof_last_bgrewrite_status"]) == ("ok", "ok"),
    )
