"""Worker processes that are started again when they die, and that never outlive this process."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence

logger = logging.getLogger(__name__)

EXIT_MISCONFIGURED = 2  # a worker that ends so would end so again
STABLE_S = 30.0  # a worker that lived so long starts again at once
MAX_BACKOFF_S = 10.0


class Supervisor:
    """Keeps `num_workers` workers running.

    Each holds the reading end of a pipe whose writing end only this process has: when we go, however, they see it.
    """

    def __init__(self, num_workers: int, redis_url: str) -> None:
        self._num_workers = num_workers
        self._environment = {**os.environ, "MSF_REDIS_URL": redis_url}
        self._owner_fd, self._alive_fd = os.pipe()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    def owns(self, pid: int) -> bool:
        """Whether a worker is one of ours; with none to start, everybody's will do."""
        return not self._num_workers or any(process.pid == pid for process in self._processes.values())

    async def run(self) -> int:
        """Until `stop` is called (then 0) or a worker cannot ever start (then its exit status)."""
        keepers = [asyncio.create_task(self._keep(number)) for number in range(self._num_workers)]
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait({stopping, *keepers}, return_when=asyncio.FIRST_COMPLETED)
        if stopping not in done:
            self._stopping.set()
            return EXIT_MISCONFIGURED
        await asyncio.gather(*keepers)
        return 0

    async def stop(self, timeout_s: float) -> None:
        """Let the workers drain; kill what has not ended after `timeout_s` and a moment."""
        self._stopping.set()
        processes = list(self._processes.values())
        for process in processes:
            if process.returncode is None:
                process.terminate()
        endings = [asyncio.create_task(process.wait()) for process in processes]
        if endings:
            _, late = await asyncio.wait(endings, timeout=timeout_s + 5)
            for process in processes:
                if late and process.returncode is None:
                    process.kill()
            await asyncio.gather(*endings)

    async def _keep(self, number: int) -> None:
        """Run worker `number` again and again; returns only when stopping or when it is misconfigured."""
        backoff_s = 0.0
        while not self._stopping.is_set():
            started_at = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *_command(self._owner_fd), env=self._environment, pass_fds=(self._owner_fd,)
            )
            self._processes[number] = process
            status = await process.wait()
            if self._stopping.is_set() or status == EXIT_MISCONFIGURED:
                return
            lived_s = time.monotonic() - started_at
            backoff_s = 0.0 if lived_s > STABLE_S else min(max(2 * backoff_s, 0.5), MAX_BACKOFF_S)
            logger.error("worker %d (pid %d) ended with status %d; starting it again", number, process.pid, status)
            await asyncio.sleep(backoff_s)


def _command(owner_fd: int) -> Sequence[str]:
    return (sys.executable, "-m", "msf_serve.cli.main", "worker", "--owner-fd", str(owner_fd))
