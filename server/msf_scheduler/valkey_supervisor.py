"""Supervisor of Valkey for as long as its owner lives: `python -I valkey_supervisor.py LOCK_FILE COMMAND…`.

It is a separate process, so that the server ends with its owner even on SIGKILL: standard input is a pipe whose other
end only the owner holds. A server that crashes is restarted. It imports no module of this package: `-I` keeps modules
of this folder from shadowing the standard library's.
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
    """Wait for the end of the pipe, which carries no data, and return whether it came."""
    return bool(select.select([0], [], [], within_s)[0])


def take_lock(path: str) -> int | None:
    """Return the lock of the data, which the server inherits: two servers must never write the same data."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not owner_is_gone(within_s=0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.02)
    return None


def run_server(command: list[str], lock: int) -> None:
    """Run the server until it ends or the owner is gone."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock]) as server:
        while server.poll() is None and not owner_is_gone(within_s=0.1):
            pass
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()


def main() -> None:
    """Restart the server until the owner is gone."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # only the owner's end stops it
    lock = take_lock(sys.argv[1])
    while lock is not None and not owner_is_gone(within_s=0):
        run_server(sys.argv[2:], lock)
        owner_is_gone(within_s=RESTART_DELAY_S)


if __name__ == "__main__":
    main()
