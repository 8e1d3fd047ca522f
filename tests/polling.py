"""Polling of conditions that another task, thread or process decides."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

TIMEOUT_S = 20.0
INTERVAL_S = 0.01


def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Block until `condition` returns a true value; raise `TimeoutError` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"condition not met within {timeout_s:g} s")
        time.sleep(INTERVAL_S)


async def eventually(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait until `condition`, a function or coroutine function, returns a true value, or raise `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while True:
            outcome = condition()
            if await outcome if inspect.isawaitable(outcome) else outcome:
                return
            await asyncio.sleep(INTERVAL_S)
