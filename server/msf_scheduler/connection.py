"""The connection to Redis, and the one place where its errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from msf_scheduler.errors import QueueUnavailable

T = TypeVar("T")

MAX_BLOCK_S = 5.0  # the longest blocking read; must stay below COMMAND_TIMEOUT_S
COMMAND_TIMEOUT_S = 10.0  # with the wait for a free connection
CONNECT_TIMEOUT_S = 3.0
MAX_CONNECTIONS = 32

_UNAVAILABLE = (
    exceptions.ConnectionError,  # also LOADING, MASTERDOWN and refused credentials
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.NoPermissionError,
    exceptions.ClusterDownError,
)
_UNAVAILABLE_CODES = ("MISCONF", "NOREPLICAS", "BUSY ")  # redis-py has no classes for these


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`, which connects on first use.

    Nothing is retried below us: a write whose reply was lost may have happened. Timeouts are ours too (`guarded`):
    redis-py's `socket_timeout` sends through `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation.
    Raises `ValueError` for other URLs.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        protocol=2,  # replies have another shape under RESP3
        max_connections=MAX_CONNECTIONS,
        timeout=None,
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


async def check(redis: Redis) -> None:
    """Raise `QueueUnavailable` unless this Redis answers, runs our scripts and never evicts jobs."""
    try:
        await call(redis, "SCRIPT LOAD", "#!lua flags=allow-oom\nreturn 1")
    except exceptions.ResponseError as error:
        raise QueueUnavailable(f"{address(redis)} cannot run our scripts: {error} (needs Redis 7)") from error
    memory = await call(redis, "INFO", "memory")
    policy = memory["maxmemory_policy"]
    if memory["maxmemory"] and policy.startswith("allkeys"):
        raise QueueUnavailable(
            f"{address(redis)} may evict accepted jobs: its maxmemory-policy is {policy!r}, which must be 'noeviction'"
        )


async def guarded(redis: Redis, reply: Awaitable[T]) -> T:
    """Every use of Redis goes through here: `QueueUnavailable` when it cannot serve us in time; bugs pass."""
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await reply
    except TimeoutError as error:
        message = f"Redis at {address(redis)} did not answer within {COMMAND_TIMEOUT_S:.0f} s"
        raise QueueUnavailable(message) from error
    except _UNAVAILABLE as error:
        raise QueueUnavailable(f"Redis at {address(redis)} is unavailable: {error}") from error
    except exceptions.ResponseError as error:
        if str(error).startswith(_UNAVAILABLE_CODES):
            raise QueueUnavailable(f"Redis at {address(redis)} is unavailable: {error}") from error
        raise


async def call(redis: Redis, *command: str | bytes | int | float) -> Any:
    """One command's reply as redis-py shapes it (bytes inside); raises `QueueUnavailable`."""
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    return await guarded(redis, execute(*command))


def address(redis: Redis) -> str:
    """Where the client connects to, without credentials."""
    options = redis.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
