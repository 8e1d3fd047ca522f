"""Connections to Redis, and the one place where redis-py's errors become ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Self, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, Sentinel
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.keys import PREFIX, URL_SECRET
from msf_scheduler.pipelining import COMMAND_TIMEOUT_S, PipeliningRedis
from msf_scheduler.redis_url import check_redis_url

T = TypeVar("T")
RedisClient: TypeAlias = Redis | RedisCluster

MAX_BLOCK_S = 5.0  # longest blocking read; must stay below COMMAND_TIMEOUT_S
CONNECT_TIMEOUT_S = 3.0
SENTINEL_PORT = 26379
MAX_CONNECTIONS = 32  # further commands wait for a free one
MAX_CLUSTER_CONNECTIONS = 1024  # further commands fail: redis-py has no blocking pool for clusters

_UNAVAILABLE = (
    exceptions.ConnectionError,  # also LOADING, MASTERDOWN and refused credentials
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    exceptions.NoPermissionError,
    exceptions.InvalidResponse,  # of a server that is no Redis
    exceptions.ClusterError,
    exceptions.ClusterDownError,
    exceptions.RedisClusterException,
)
_UNAVAILABLE_CODES = ("MISCONF", "NOREPLICAS", "BUSY ")  # redis-py has no classes for these


def connect(url: str) -> RedisClient:
    """Return a client, which connects on first use; raise `ValueError` for a URL that `check_redis_url` refuses.

    - `redis://`, `rediss://` (TLS) or `unix://`: one server
    - `redis-cluster://`, `rediss-cluster://`: any node of a Redis Cluster
    - `redis-sentinel://host:port,host:port/service`: the master that Sentinels name

    Nothing is retried here: a write whose reply was lost may still have been applied. Timeouts are ours too
    (`guarded`): redis-py's `socket_timeout` sends through `asyncio.wait_for`, which before Python 3.12 may swallow a
    cancellation.
    """
    check_redis_url(url)
    options: dict[str, Any] = {
        "protocol": 2,  # replies have another shape under RESP3
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 0),
    }
    match url.partition("://")[0]:
        case "redis" | "rediss" | "unix":
            pool = BlockingConnectionPool.from_url(url, max_connections=MAX_CONNECTIONS, timeout=None, **options)
            return PipeliningRedis.from_pool(pool)
        case "redis-cluster" | "rediss-cluster":
            node_url = url.replace("-cluster", "", 1)
            return _LazyCluster.from_url(node_url, max_connections=MAX_CLUSTER_CONNECTIONS, **options)
    return _connect_through_sentinels(url, options)


class _LazyCluster(RedisCluster):
    """Cluster client that connects on first use, like other clients, instead of when its context is entered."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class _SentinelClient(PipeliningRedis):
    """Client of the master that Sentinels name; closes its connections to them too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        for sentinel in self.sentinels:
            await sentinel.aclose()

    @property
    def sentinels(self) -> Sequence[Redis]:
        """Clients of the Sentinels."""
        pool: Any = self.connection_pool
        return cast(Sequence[Redis], pool.sentinel_manager.sentinels)


def _connect_through_sentinels(url: str, options: dict[str, Any]) -> Redis:
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = (unquote(part) for part in credentials.partition(":"))
    nodes = [urlsplit(f"//{node}") for node in hosts.split(",")]
    sentinels = [(node.hostname, node.port or SENTINEL_PORT) for node in nodes]
    service = parts.path.strip("/")
    sentinel = Sentinel(sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    options = options | {"username": username or None, "password": password or None}
    client: Redis = sentinel.master_for(service, redis_class=_SentinelClient, **options)
    return client


async def check(redis: RedisClient) -> None:
    """Raise `QueueUnavailable` unless this Redis answers, runs our Lua functions and never evicts jobs."""
    try:
        await call(redis, "FUNCTION LIST", "LIBRARYNAME", "msf")
        await call(redis, "GET", URL_SECRET)  # of whatever node this is
    except exceptions.MovedError as error:
        message = f"{address(redis)} is a node of a Redis Cluster. Allowed: redis-cluster://{address(redis)}"
        raise QueueUnavailable(message) from error
    except exceptions.ResponseError as error:
        if "unknown" not in str(error).lower():
            raise QueueUnavailable(f"Redis at {address(redis)} cannot be used: {error}") from error
        message = f"{address(redis)} has no functions, which need Redis 7 or later, or Valkey: {error}"
        raise QueueUnavailable(message) from error
    memory = await server_info(redis, "memory")
    policy = memory["maxmemory_policy"]
    if memory["maxmemory"] and policy.startswith("allkeys"):
        raise QueueUnavailable(
            f"{address(redis)} may evict accepted jobs: maxmemory-policy is {policy!r}, and must be 'noeviction'"
        )


async def guarded(redis: RedisClient, reply: Awaitable[T], timeout_s: float | None = COMMAND_TIMEOUT_S) -> T:
    """Await a reply of Redis; raise `QueueUnavailable` if Redis cannot serve it in time.

    Every use of Redis goes through here. Errors that mean a bug of ours pass unchanged.
    """
    try:
        async with asyncio.timeout(timeout_s):
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


async def call(redis: RedisClient, *command: str | bytes | int | float) -> Any:
    """Return one command's reply as redis-py shapes it (bytes inside); raise `QueueUnavailable`."""
    if isinstance(redis, PipeliningRedis):
        return await guarded(redis, redis.enqueue(*command), timeout_s=None)  # it has its own
    return await call_blocking(redis, *command)


async def call_blocking(redis: RedisClient, *command: str | bytes | int | float) -> Any:
    """Do as `call`, on a connection of its own, where a command that waits holds up no others."""
    reply: Awaitable[Any] = redis.execute_command(*command)
    return await guarded(redis, reply)


async def call_all(redis: RedisClient, *commands: Sequence[str | bytes | int | float]) -> list[Any]:
    """Return the replies of several commands in one round trip; raise `QueueUnavailable`."""
    if isinstance(redis, PipeliningRedis):
        replies = asyncio.gather(*(redis.enqueue(*command) for command in commands))
        return await guarded(redis, replies, timeout_s=None)
    async with redis.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return list(await guarded(redis, pipeline.execute()))


async def server_info(redis: RedisClient, *sections: str) -> dict[str, Any]:
    """Return INFO of the server that holds the jobs; raise `QueueUnavailable`."""
    if not isinstance(redis, RedisCluster):
        return dict(await call(redis, "INFO", *sections))
    await guarded(redis, redis.initialize())
    node = redis.get_node_from_key(PREFIX)
    return dict(await guarded(redis, redis.execute_command("INFO", *sections, target_nodes=node)))


def address(redis: RedisClient) -> str:
    """Return where the client connects to, without credentials."""
    if isinstance(redis, RedisCluster):
        return ", ".join(redis.nodes_manager.startup_nodes)
    if isinstance(redis, _SentinelClient):
        return ", ".join(address(sentinel) for sentinel in redis.sentinels)
    options = redis.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
