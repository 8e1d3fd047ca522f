"""Worker processes that are started again when they die, and that never outlive this process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

logger = logging.getLogger(__name__)

EXIT_MISCONFIGURED = 2  # a worker that ends so would end so again
STABLE_S = 30.0  # a worker that lived so long starts again at once
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
KILL_AFTER_S = 5.0  # beyond the time that a worker may take to drain


class Supervisor:
    """Keeps `num_workers` workers running.

    Each holds the reading end of a pipe whose writing end only this process has: when we go, however, they see it.
    """

    def __init__(
        self,
        num_workers: int,
        redis_url: str,
        *,
        metrics_port: int,
        drain_timeout_s: float,
        on_death: Callable[[int], Awaitable[None]],
    ) -> None:
        """`on_death` is told the pid of a worker that has ended by itself."""
        self._num_workers = num_workers
        self._environment = {**os.environ, "MSF_REDIS_URL": redis_url}
        self._metrics_port = metrics_port
        self._drain_timeout_s = drain_timeout_s
        self._on_death = on_death
        self._owner_fd, self._alive_fd = os.pipe()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def owns(self, pid: int) -> bool:
        """Whether a worker is one of ours; with none to start, everybody's will do."""
        return not self._num_workers or any(process.pid == pid for process in self._processes.values())

    async def run(self) -> int:
        """Until `stop` is called (then 0) or a worker cannot ever start (then its exit status); no worker is left."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(number)) for number in range(self._num_workers)]
            await self._stopping.wait()
        return max((keeper.result() for keeper in keepers), default=0)

    def stop(self) -> None:
        """Let the workers drain; `run` returns when they have, and kills what takes too long."""
        self._stopping.set()

    async def _keep(self, number: int) -> int:
        """Run worker `number` again and again; returns `run`'s result."""
        backoff_s = 0.0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            process = self._processes[number] = await self._start(number)
            status = await self._end_of(process)
            if status:
                await self._on_death(process.pid)
            if self._stopping.is_set():
                break
            if status == EXIT_MISCONFIGURED:
                self._stopping.set()
                return status
            lived_s = time.monotonic() - started_at
            backoff_s = 0.0 if lived_s > STABLE_S else min(max(2 * backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
            logger.error("worker %d (pid %d) ended with status %d; starting it again", number, process.pid, status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
        return 0

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        metrics_port = self._metrics_port + number if self._metrics_port else 0
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "msf_cli.main", "worker", "--owner-fd", str(self._owner_fd)),
            env={**self._environment, "MSF_WORKER_METRICS_PORT": str(metrics_port)},
            pass_fds=(self._owner_fd,),
            start_new_session=True,  # a Ctrl-C in the terminal is for us, who then stop it
        )

    async def _end_of(self, process: asyncio.subprocess.Process) -> int:
        """Its exit status, once it has ended by itself or because we are stopping."""
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if process.returncode is None:
            process.terminate()
            await asyncio.wait({ended}, timeout=self._drain_timeout_s + KILL_AFTER_S)
        if process.returncode is None:
            process.kill()
        return await ended
