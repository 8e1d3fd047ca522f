"""Worker processes that are restarted when they die and never outlive this process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from msf_cli.settings import Settings

logger = logging.getLogger(__name__)

EXIT_MISCONFIGURED = 2  # a worker that exits with it at the first start would do so again
STABLE_S = 30.0  # a worker that lived this long restarts at once
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
KILL_AFTER_S = 5.0  # beyond the time that a worker has to drain


class Supervisor:
    """Keeps `settings.workers` workers running.

    Each worker inherits the read end of a pipe whose write end only this process holds: however this process ends, the
    workers see it.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], on_death: Callable[[int], Awaitable[None]]
    ) -> None:
        """`environment` is that of a worker; `on_death` is called with the pid of a worker that ended by itself."""
        self._settings = settings
        self._environment = environment
        self._on_death = on_death
        self._owner_fd, self._alive_fd = os.pipe()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self.has_served = False  # a worker has once been ready; from then on only `stop` ends the others

    def owns(self, pid: int) -> bool:
        """Return whether a worker is supervised here; without any to supervise, every worker counts."""
        return not self._settings.workers or any(process.pid == pid for process in self._processes.values())

    async def run(self) -> int:
        """Run the workers until `stop` is called (returns 0).

        Before any was ready, one that is misconfigured ends them all, too (returns its exit status).
        """
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(number)) for number in range(self._settings.workers)]
            await self._stopping.wait()
        return max((keeper.result() for keeper in keepers), default=0)

    def stop(self) -> None:
        """Let the workers drain; `run` kills those that take too long, then returns."""
        self._stopping.set()

    async def _keep(self, number: int) -> int:
        """Run worker `number`, restarting it when it dies; returns `run`'s result."""
        backoff_s = 0.0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            process = self._processes[number] = await self._start(number)
            status = await self._wait_for(process)
            if status:
                await self._on_death(process.pid)
            if self._stopping.is_set():
                break
            if status == EXIT_MISCONFIGURED and not self.has_served:
                self._stopping.set()
                return status
            lifetime_s = time.monotonic() - started_at
            backoff_s = 0.0 if lifetime_s > STABLE_S else min(max(2 * backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
            logger.error("worker %d (pid %d) ended with status %d; restarting it", number, process.pid, status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)
        return 0

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        first_port = self._settings.worker_metrics_port
        metrics_port = first_port + number if first_port else 0
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "msf_cli.main", "worker", "--owner-fd", str(self._owner_fd)),
            *(["--is-restart"] if self.has_served else []),
            env={**self._environment, "MSF_WORKER_METRICS_PORT": str(metrics_port)},
            pass_fds=(self._owner_fd,),
            start_new_session=True,  # Ctrl-C in the terminal reaches this process, which stops the worker
        )

    async def _wait_for(self, process: asyncio.subprocess.Process) -> int:
        """Return the exit status, once the worker has ended by itself or has been stopped."""
        exit_task = asyncio.create_task(process.wait())
        stop_task = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({exit_task, stop_task}, return_when=asyncio.FIRST_COMPLETED)
        stop_task.cancel()
        if process.returncode is None:
            process.terminate()
            await asyncio.wait({exit_task}, timeout=self._settings.drain_timeout_s + KILL_AFTER_S)
        if process.returncode is None:
            process.kill()
        return await exit_task
