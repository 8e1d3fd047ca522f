"""Supervisor of Valkey for as long as its owner lives: `python -I valkey_supervisor.py LOCK_FILE COMMAND…`.

It is a separate process, so that the server ends with its owner even on SIGKILL: standard input is a pipe whose other
end only the owner holds, and through which the owner says that the server has answered. A server that cannot start ends
the supervisor with its status; one that crashes later is restarted. It imports no module of this package: `-I` keeps
modules of this folder from shadowing the standard library's.
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

STOP_TIMEOUT_S = 5.0  # then it is killed: what Valkey has acknowledged is with the kernel, unless a sync takes so long
MIN_RESTART_DELAY_S = 0.2
MAX_RESTART_DELAY_S = 5.0
STABLE_S = 30.0
PRIVATE_UMASK = 0o077


class Owner:
    """The process at the other end of the pipe."""

    def __init__(self) -> None:
        self.has_seen_answer = False

    def is_gone(self, within_s: float) -> bool:
        """Wait for the end of the pipe and return whether it came."""
        deadline = time.monotonic() + within_s
        while select.select([0], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if not os.read(0, 1):
                return True
            self.has_seen_answer = True
        return False


def take_lock(path: str, owner: Owner) -> int | None:
    """Return the lock of the data, which the server inherits: two servers must never write the same data."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while not owner.is_gone(within_s=0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.02)
    return None


def run_server(command: list[str], lock: int, owner: Owner) -> int:
    """Run the server until it ends or the owner is gone; return its status."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[lock]) as server:
        while server.poll() is None and not owner.is_gone(within_s=0.1):
            pass
        server.terminate()
        try:
            return server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            return server.wait()


def main() -> None:
    """Restart the server until the owner is gone."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # only the owner's end stops it
    os.umask(PRIVATE_UMASK)
    owner = Owner()
    lock = take_lock(sys.argv[1], owner)
    delay_s = MIN_RESTART_DELAY_S
    while lock is not None and not owner.is_gone(within_s=0):
        started_at = time.monotonic()
        status = run_server(sys.argv[2:], lock, owner)
        if status > 0 and not owner.has_seen_answer:
            sys.exit(status)
        delay_s = MIN_RESTART_DELAY_S if time.monotonic() - started_at > STABLE_S else delay_s
        owner.is_gone(within_s=delay_s)
        delay_s = min(2 * delay_s, MAX_RESTART_DELAY_S)


if __name__ == "__main__":
    main()
