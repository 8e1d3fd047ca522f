"""Programs that are killed, or kill Valkey, at one point of their work: a write to Redis, or a change of a file."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
from redis.asyncio.connection import AbstractConnection

from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_version
from msf_engine.repository import read_version
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from msf_worker import model_manager
from msf_worker.main import run_worker
from msf_worker.settings import WorkerSettings

Moment = Literal["before", "half sent", "after"]
COMMANDS = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+\r\n(?:\$\d+\r\nmsf_\w+)?)")  # with the function that is called
MAX_OF_A_KIND = 2
FILE_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime", "os.truncate")


@dataclass(frozen=True)
class CrashPoint:
    """The `number`th write to Redis, from 1, and the moment of it; `victim` is a process, 0 this one.

    Only the first writes of each kind count: heartbeats and reports are repeated for as long as a process lives.
    """

    number: int
    moment: Moment = "before"
    victim: int = 0

    def arm(self) -> None:
        """Kill the victim when this process gets there."""
        send = AbstractConnection.send_packed_command
        num_writes = 0
        seen: Counter[tuple[bytes, ...]] = Counter()

        async def send_and_crash(connection: Any, command: bytes, check_health: bool = True) -> None:
            nonlocal num_writes
            data = command if isinstance(command, bytes) else b"".join(command)
            kind = tuple(COMMANDS.findall(data))
            seen[kind] += 1
            num_writes += seen[kind] <= MAX_OF_A_KIND
            if num_writes != self.number or seen[kind] > MAX_OF_A_KIND:
                return await send(connection, data, check_health)
            if self.moment == "half sent":
                connection._writer.write(data[: len(data) // 2])
                await connection._writer.drain()
            elif self.moment == "after":
                await send(connection, data, check_health)
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
            if self.moment == "before":
                await send(connection, data, check_health)
            return None

        AbstractConnection.send_packed_command = send_and_crash  # type: ignore[method-assign,assignment]


def serve_models(point: CrashPoint, redis_url: str, settings: WorkerSettings) -> None:
    """Run a worker that looks for models to load and unload more often."""
    logging.disable()
    model_manager.CHECK_INTERVAL_S, model_manager.RETIRE_DELAY_S = 0.3, 0.1
    point.arm()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await run_worker(settings, redis_url, stop, asyncio.Event(), is_restart=True)

    asyncio.run(run())


def submit_job(point: CrashPoint, redis_url: str, body: dict[str, Any], key: str) -> None:
    """Run a server for one request."""
    logging.disable()
    point.arm()
    status = asyncio.run(submit(redis_url, body, key))
    sys.exit(0 if status == 202 else 3)


async def submit(redis_url: str, body: dict[str, Any], key: str) -> int:
    """Return the status of one request to a server of its own."""
    app = create_app(ServerSettings(redis_url=redis_url))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://msf", timeout=60) as client:
            return (await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})).status_code


def build_plans(number: int, repository: Path, cache: Path) -> None:
    """Fill a plan cache, and be killed before the `number`th change of a file in it."""
    logging.disable()
    num_changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_changes
        is_change = event in FILE_CHANGES or (event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)))
        if is_change and str(arguments[0]).startswith(str(cache)):
            num_changes += 1
            if num_changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    load_version(read_version(repository, "tiny", "1"), "noop", None, 1, PlanCache(cache), (1, 4))
