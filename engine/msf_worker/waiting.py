"""Waits for the first of several tasks, and for Redis to answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from msf_scheduler.errors import QueueUnavailable

logger = logging.getLogger(__name__)

RETRY_S = 0.5  # between attempts to reach Redis
T = TypeVar("T")


async def first_done(*awaitables: Awaitable[Any]) -> None:
    """Return when one is done, or raise its exception.

    The others are cancelled and awaited, unless they were tasks before.
    """
    tasks = {asyncio.ensure_future(awaitable): awaitable for awaitable in awaitables}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        started = [task for task, awaitable in tasks.items() if task is not awaitable]
        for task in started:
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)


async def until_redis_answers(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat `call` for as long as Redis is unavailable."""
    while True:
        try:
            return await call()
        except QueueUnavailable as error:
            logger.warning("waiting for Redis: %s", error)
            await asyncio.sleep(RETRY_S)
