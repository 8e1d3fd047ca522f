"""Memory and disk use of the Redis that holds the jobs."""

from __future__ import annotations

from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call, server_info


@dataclass(frozen=True)
class Storage:
    """Memory and disk use. `memory_limit_bytes` and `aof_bytes` are 0 without a limit or an append-only file.

    `reserved_bytes` are set aside for the results of accepted jobs.

    Not `aof_ok`: the last write or rewrite of the append-only file failed, as on a full disk. Redis
    `accepts_writes` until a write has failed.
    """

    memory_bytes: int
    memory_limit_bytes: int
    aof_bytes: int
    aof_ok: bool
    accepts_writes: bool = True
    reserved_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """True while no job can be accepted."""
        needed_bytes = self.memory_bytes + self.reserved_bytes
        return not self.accepts_writes or 0 < self.memory_limit_bytes <= needed_bytes


async def read_storage(redis: RedisClient) -> Storage:
    """Return the current use; raise `QueueUnavailable`."""
    info = await server_info(redis, "memory", "persistence")
    return Storage(
        memory_bytes=info["used_memory"],
        memory_limit_bytes=info["maxmemory"],
        aof_bytes=info.get("aof_current_size", 0),
        aof_ok=(info["aof_last_write_status"], info["aof_last_bgrewrite_status"]) == ("ok", "ok"),
        accepts_writes=info["aof_last_write_status"] == "ok",
        reserved_bytes=int(await call(redis, "GET", keys.RESERVED) or 0),
    )
