"""Commands of concurrent tasks on one connection: each gets its own reply, and fails alone."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from msf_scheduler import pipelining
from msf_scheduler.connection import call, call_all
from msf_scheduler.errors import QueueUnavailable


async def test_concurrent_commands_get_their_own_replies(redis: Redis) -> None:
    keys = [str(number) for number in range(100)]
    await asyncio.gather(*(call(redis, "SET", key, f"value {key}") for key in keys))
    assert await call_all(redis, *(("GET", key) for key in keys)) == [f"value {key}".encode() for key in keys]


async def test_an_error_reply_fails_its_own_command_alone(redis: Redis) -> None:
    replies = await asyncio.gather(
        call(redis, "SET", "key", 1), call(redis, "LPUSH", "key", 2), call(redis, "GET", "key"), return_exceptions=True
    )
    assert isinstance(replies[1], ResponseError)
    assert (replies[0], replies[2]) == (True, b"1")


async def test_a_cancelled_command_leaves_its_reply_to_nobody(redis: Redis) -> None:
    cancelled = asyncio.create_task(call(redis, "SET", "key", 1))
    other = asyncio.create_task(call(redis, "GET", "key"))
    await asyncio.sleep(0)  # both are sent
    cancelled.cancel()
    assert await other == b"1"


async def test_commands_behind_one_that_hangs_fail_with_it(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelining, "COMMAND_TIMEOUT_S", 0.05)
    hanging = asyncio.create_task(call(redis, "BLPOP", "nothing", 60))
    await asyncio.sleep(0)  # it is sent alone
    waiting = [asyncio.create_task(call(redis, "GET", "key")) for _ in range(3)]
    for task in (hanging, *waiting):
        with pytest.raises(QueueUnavailable, match="did not answer"):
            await task
    monkeypatch.undo()
    assert await call(redis, "GET", "key") is None, "the next command has another connection"


async def test_a_lost_connection_is_replaced(redis: Redis) -> None:
    await call(redis, "SET", "key", 1)
    await redis.client_kill_filter(_type="normal", skipme=True)
    assert await call(redis, "GET", "key") == b"1"
