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

EXIT_MISCONFIGURED = 2  # a worker that exits with it would do so again
STABLE_S = 30.0  # a worker that lived this long restarts at once
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 10.0
HAND_BACK_S = 5.0  # for a worker to hand its jobs back when its time to drain is over
BURIAL_TIMEOUT_S = 3.0


class Supervisor:
    """Keeps `settings.workers` workers running.

    Each worker inherits the read end of a pipe whose write end only this process holds: however this process ends, the
    workers see it.
    """

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], on_death: Callable[[int], Awaitable[None]]
    ) -> None:
        """`environment` is that of a worker; `on_death` is called with the pid of a worker that ended by itself."""
        self.has_served = False  # set once a worker was ready: from then on, none that fails ends the service
        self._settings = settings
        self._environment = environment
        self._on_death = on_death
        self._owner_fd, self._alive_fd = os.pipe()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._hand_back_s = HAND_BACK_S

    def owns(self, pid: int) -> bool:
        """Return whether a worker is supervised here; without any to supervise, every worker counts."""
        return not self._settings.workers or any(process.pid == pid for process in self._processes.values())

    async def run(self) -> int:
        """Run the workers until `stop` is called (returns 0) or none can start (returns the exit status of one)."""
        async with asyncio.TaskGroup() as group:
            keepers = [group.create_task(self._keep(number)) for number in range(self._settings.workers)]
            await self._stopping.wait()
        return max((keeper.result() for keeper in keepers), default=0)

    def stop(self, drain_timeout_s: float) -> None:
        """Let the workers drain; `run` returns when they have ended, or have handed back their jobs after the time."""
        if not self._stopping.is_set():
            self._stopping.set()
            asyncio.get_running_loop().call_later(drain_timeout_s, self._hurrying.set)

    def hurry(self, hand_back_s: float) -> None:
        """Let the workers hand back their jobs at once, and kill them after `hand_back_s`."""
        self._hand_back_s = hand_back_s
        self._stopping.set()
        self._hurrying.set()

    async def _keep(self, number: int) -> int:
        """Run worker `number`, restarting it when it dies; returns `run`'s result."""
        backoff_s = 0.0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            process = self._processes[number] = await self._start(number)
            status = await self._wait_for(process)
            if status:
                with suppress(TimeoutError):
                    async with asyncio.timeout(BURIAL_TIMEOUT_S):
                        await self._on_death(process.pid)
            if self._stopping.is_set():
                break
            if status == EXIT_MISCONFIGURED and not self.has_served:
                self._stopping.set()
                self._hurrying.set()
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
        await _first_done(exit_task, self._stopping)
        if process.returncode is None:
            process.terminate()
            await _first_done(exit_task, self._hurrying)
        if process.returncode is None:
            process.terminate()  # the second signal lets it hand back what it runs
            await asyncio.wait({exit_task}, timeout=self._hand_back_s)
        if process.returncode is None:
            process.kill()
        return await exit_task


async def _first_done(task: asyncio.Task[int], event: asyncio.Event) -> None:
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
