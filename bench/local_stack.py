"""Local stack for benchmarks, fault injection and tests: `msf` commands, Valkey and Prometheus on free ports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from msf_scheduler.embedded_valkey import OWNER, find_server

MODEL = "fashion-mnist"  # small and fast: benchmarks measure the service, not the network
TIMEOUT_S = 300.0  # generous: machines may be slow and busy
KILL_TIMEOUT_S = 10.0
POLL_S = 0.02
SCRAPE_S = 1.0


@dataclass(frozen=True)
class Msf:
    """A running `msf` command, leader of its own process group."""

    process: subprocess.Popen[bytes]
    log: Path  # standard output and error of the command and its children

    @property
    def output(self) -> str:
        return self.log.read_text()

    def url(self) -> str:
        """Wait until the server is ready and return its URL. Raises RuntimeError if the command ends first."""

        def is_ready() -> bool:
            self.check_running()
            return "is ready at " in self.output

        until(is_ready)
        return self.output.partition("is ready at ")[2].split()[0]

    def check_running(self) -> None:
        """Raise RuntimeError with the output if the command has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"msf ended with status {self.process.returncode}:\n{self.output}")

    def descendants(self) -> list[psutil.Process]:
        """Return the running command's descendants; none once it has ended, since its pid may be reused."""
        if self.process.poll() is not None:
            return []
        return psutil.Process(self.process.pid).children(recursive=True)

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes by role: `server`, `worker` (the last of several), `valkey` and `supervisor`."""
        roles = {"server": psutil.Process(self.process.pid)}
        for process in self.descendants():
            command = command_line(process)
            if command == "msf worker":
                roles["worker"] = process
            elif "valkey-server" in command:
                roles["valkey" if "python" not in process.name() else "supervisor"] = process
        return roles

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)


@contextmanager
def msf(*arguments: str, environment: Mapping[str, str], log: Path) -> Iterator[Msf]:
    """Run `msf` with `environment` alone; on exit, also by SIGTERM, kill it with all its descendants."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "msf_cli.main", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Msf(process, log)
    try:
        yield running
    finally:
        descendants = running.descendants()
        process.kill()
        for descendant in descendants:
            with suppress(psutil.NoSuchProcess):
                descendant.kill()
        process.wait()
        with suppress(TimeoutError):
            until(lambda: are_gone(descendants), KILL_TIMEOUT_S)


@dataclass(frozen=True)
class LocalService:
    """A ready `msf serve`."""

    url: str
    msf: Msf
    ready_after_s: float


@contextmanager
def local_service(folder: Path, core: int | None = None, /, **settings: str) -> Iterator[LocalService]:
    """Run `msf serve` with its data in `folder`, on a free port; `settings` override the environment's.

    With `core`, all its processes are pinned to that core.
    """
    environment = {
        **os.environ,
        "MSF_PORT": "0",
        "MSF_DATA_DIR": str(folder),
        "MSF_MODEL_REPO": str(single_model_repository(folder)),
        "MSF_LOG_LEVEL": "warning",
        **settings,
    }
    started_at = time.monotonic()
    with msf("serve", environment=environment, log=folder / "serve.log") as running:
        if core is not None:
            os.sched_setaffinity(running.process.pid, {core})
        yield LocalService(running.url(), running, time.monotonic() - started_at)


def embedded_redis_url(data_dir: Path) -> str:
    """Return the URL of the Valkey that a running service keeps in `data_dir`."""
    return (data_dir / OWNER).read_text().splitlines()[0]


def single_model_repository(folder: Path) -> Path:
    """Return MSF_MODEL_REPO if it is set, else a model repository below `folder` that holds MODEL alone."""
    if "MSF_MODEL_REPO" in os.environ:
        return Path(os.environ["MSF_MODEL_REPO"])
    repository = folder / "models"
    repository.mkdir(exist_ok=True)
    if not (repository / MODEL).exists():
        (repository / MODEL).symlink_to(Path("model_repo", MODEL).resolve(), target_is_directory=True)
    return repository


def start_valkey(folder: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a Valkey with an append-only file that listens on `folder`/valkey.sock."""
    options = {
        "port": "0",
        "unixsocket": f"{folder}/valkey.sock",
        "dir": str(folder),
        "logfile": "valkey.log",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": "512mb",
        "maxmemory-policy": "noeviction",
    }
    command = [find_server(), *(word for name, value in options.items() for word in (f"--{name}", value))]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Run a Prometheus that scrapes `targets` (host:port by job) every second; yield its URL once all are up."""
    program = shutil.which("prometheus")
    if program is None:
        sys.exit("prometheus is not on PATH (Debian: apt install prometheus)")
    jobs = [{"job_name": job, "static_configs": [{"targets": list(hosts)}]} for job, hosts in targets.items()]
    config = {"global": {"scrape_interval": f"{SCRAPE_S:g}s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)

    def all_are_up() -> bool:
        answer = httpx.get(f"http://{address}/api/v1/query", params={"query": "sum(up)"})
        result = answer.json()["data"]["result"] if answer.is_success else []
        return bool(result) and int(result[0]["value"][1]) == sum(map(len, targets.values()))

    try:
        until(all_are_up)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Poll `condition` until it holds; a failed connection counts as false. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(POLL_S)
    raise TimeoutError(f"condition not met within {timeout_s:g} s")


def until_idle(url: str) -> None:
    """Wait until no job is queued or running at the server."""
    until(lambda: read_metric(url, "msf_jobs_queued") + read_metric(url, "msf_jobs_running") == 0)


def read_metric(url: str, name: str) -> float:
    """Return the sum of all samples of a metric that the process at `url` exports."""
    text = httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).raise_for_status().text
    families = text_string_to_metric_families(text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def free_port(num_consecutive: int = 1) -> int:
    """Return the first of `num_consecutive` TCP ports in a row on which nothing listens."""
    while True:
        with ExitStack() as sockets, suppress(OSError):
            first = 0
            for offset in range(num_consecutive):
                probe = sockets.enter_context(socket.socket())
                probe.bind(("127.0.0.1", first + offset if first else 0))
                first = first or probe.getsockname()[1]
            return first


def are_gone(processes: Iterable[psutil.Process]) -> bool:
    return not any(_is_alive(process) for process in processes)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def command_line(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline()).strip()
    return ""


def resident_mb(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20
