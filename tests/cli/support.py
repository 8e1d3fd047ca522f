"""`msf` as a process of its own, and what it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

TIMEOUT_S = 180.0  # a machine may be slow and busy; no test comes near it unless it fails
ProcessId = tuple[int, str]  # pid and start time: a pid alone may be given to another process


@dataclass
class Msf:
    """A running `msf` command, leader of its own process group."""

    process: subprocess.Popen[bytes]
    log: Path  # its standard output and error, and its children's

    @property
    def output(self) -> str:
        return self.log.read_text()

    def url(self) -> str:
        """Of the server, once it says that it is ready."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.output
            return "is ready at " in self.output

        until(is_ready)
        return self.output.partition("is ready at ")[2].split()[0]

    def descendants(self) -> dict[ProcessId, str]:
        """Its children and theirs by their command lines."""
        found: dict[ProcessId, str] = {}
        family = {self.process.pid}
        processes = _processes()
        while family:
            children = {pid: start for pid, (parent, start) in processes.items() if parent in family}
            found |= {(pid, start): _command_line(pid) for pid, start in children.items()}
            family = set(children)
        return found

    def worker_pid(self) -> int | None:
        """The worker, under the name that `ps` shows, once it has given it to itself."""
        return next((pid for (pid, _), line in self.descendants().items() if line == "msf worker"), None)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)


@contextmanager
def msf(*arguments: str, settings: Mapping[str, str], log: Path) -> Iterator[Msf]:
    """Killed with all that it started when the test ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MSF_")}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "msf_cli.main", *arguments],
            env={**environment, "OMP_NUM_THREADS": "1", **settings},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        started = Msf(process, log)
        try:
            yield started
        finally:
            family = started.descendants()
            process.kill()
            for pid, start in family:
                if is_alive((pid, start)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def are_gone(processes: Mapping[ProcessId, str]) -> bool:
    return not any(is_alive(process) for process in processes)


def is_alive(process: ProcessId) -> bool:
    pid, start = process
    return _processes().get(pid, (0, ""))[1] == start


def num_jobs(url: str, state: Literal["queued", "running"]) -> float:
    metrics = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(f"msf_jobs_{state}{{"))


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and start time of every process by its pid; without those that only wait to be reaped."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                state, parent, *fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if state != "Z":
                    found[int(folder.name)] = int(parent), fields[17]
    return found


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""
