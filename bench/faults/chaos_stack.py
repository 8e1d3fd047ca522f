"""Stack whose parts a chaos scenario kills and restarts: one Valkey, two servers, two workers."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import psutil
from redis import Redis

from bench.local_stack import (
    Msf,
    command_line,
    free_port,
    msf,
    read_metric,
    single_model_repository,
    start_valkey,
    until,
)

LEASE_S = 3.0
NUM_WORKERS = 2


@dataclass
class ChaosStack:
    """The first server runs the workers, the second has none; `embedded`: one server with its own Valkey."""

    folder: Path
    settings: Mapping[str, str]
    embedded: bool
    commands: ExitStack
    servers: dict[int, Msf] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)
    valkey: subprocess.Popen[bytes] | None = None

    @property
    def clock(self) -> Path:
        """File that holds the offset of Valkey's clock, in libfaketime's format."""
        return self.folder / "clock"

    def start(self) -> None:
        self.clock.write_text("+0")
        if not self.embedded:
            self.start_valkey()
        for place in range(1 if self.embedded else 2):
            self.urls.append(f"http://127.0.0.1:{free_port()}")
            self.start_server(place)
        until(self._is_ready)

    def start_valkey(self) -> None:
        environment = dict(os.environ)
        if library := find_faketime():
            environment |= {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_NO_CACHE": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        self.valkey = start_valkey(self.folder, environment)

    def stop_valkey(self, sent: signal.Signals) -> None:
        assert self.valkey is not None
        self.valkey.send_signal(sent)
        self.valkey.wait()

    def start_server(self, place: int) -> None:
        """Run `msf serve`; after a kill, again on the same port and data."""
        location = {"MSF_DATA_DIR": str(self.folder / "data")} if self.embedded else {"MSF_REDIS_URL": self._redis_url}
        environment = {
            **os.environ,
            "MSF_MODEL_REPO": str(single_model_repository(self.folder)),
            "MSF_THREADS": "1",
            "MSF_LEASE_S": str(LEASE_S),
            "MSF_PORT": self.urls[place].rpartition(":")[2],
            "MSF_WORKERS": str(0 if place else NUM_WORKERS),
            **location,
            **self.settings,
        }
        server = msf("serve", environment=environment, log=self.folder / f"server-{place}.log")
        self.servers[place] = self.commands.enter_context(server)

    def kill_server(self, place: int) -> None:
        self.servers[place].process.kill()
        self.servers[place].process.wait()

    def worker(self) -> psutil.Process:
        """Return one of the live workers."""
        descendants = self.servers[0].descendants()
        return next(process for process in descendants if command_line(process) == "msf worker")

    def redis(self) -> Redis:
        return Redis.from_url(self._redis_url)

    @property
    def _redis_url(self) -> str:
        return f"unix://{self.folder}/valkey.sock"

    def _is_ready(self) -> bool:
        for server in self.servers.values():
            server.check_running()
        are_ready = all(httpx.get(f"{url}/v2/health/ready").is_success for url in self.urls)
        return are_ready and read_metric(self.urls[0], "msf_workers") >= NUM_WORKERS


@contextmanager
def chaos_stack(settings: Mapping[str, str], *, embedded: bool) -> Iterator[ChaosStack]:
    """Start a stack and wait until it is ready; on exit, kill all of it."""
    with TemporaryDirectory(prefix="msf-", ignore_cleanup_errors=True) as folder, ExitStack() as commands:
        stack = ChaosStack(Path(folder), settings, embedded, commands)
        try:
            stack.start()
            yield stack
        finally:
            if stack.valkey is not None:
                stack.stop_valkey(signal.SIGKILL)


def find_faketime() -> str | None:
    """Find libfaketime (Debian: apt install faketime)."""
    for folder in ("/usr/lib", "/usr/local/lib"):
        for library in Path(folder).glob("**/faketime/libfaketimeMT.so.1"):
            return str(library)
    return None
