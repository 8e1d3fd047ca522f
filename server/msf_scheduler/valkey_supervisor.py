"""Runs Valkey for as long as its owner lives: `python -I warden.py LOCK_FILE COMMAND…`.

A process of its own, so that the server ends with its owner even on SIGKILL: standard input is a pipe whose
other end only the owner holds. A server that crashes is started again. Imports nothing of ours: `-I` keeps it
from taking this folder's modules for the standard library's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time

STOP_TIMEOUT_S = 10.0
RESTART_DELAY_S = 0.2


def owner_is_gone(within_s: float) -> bool:
    """Waits; the pipe carries no data, so it becomes readable only at its end."""
    return bool(select.select([0], [], [], within_s)[0])


def take_lock(path: str) -> int | None:
    """The data's lock, which the server inherits: two servers must never write the same data."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not owner_is_gone(within_s=0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.02)
    return None


def run_server(command: list[str], lock: int) -> None:
    """Returns when the owner is gone, or when the server has ended by itself."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock]) as server:
        while server.poll() is None and not owner_is_gone(within_s=0.1):
            pass
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()


def main() -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the end of the owner is the only order to stop
    lock = take_lock(sys.argv[1])
    while lock is not None and not owner_is_gone(within_s=0):
        run_server(sys.argv[2:], lock)
        owner_is_gone(within_s=RESTART_DELAY_S)


if __name__ == "__main__":
    main()
