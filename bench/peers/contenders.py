"""Start and stop of each server that is compared, one at a time."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.local_stack import are_gone, free_port, local_service, until
from bench.peers.client import PeerClient
from bench.peers.pipeline import TIMEOUT_S, PipelineOptions
from msf_cli.load.mix import Kind, PlannedRequest

OURS = "msf-serve"
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
# An overload queues here as in the peers, and results do not pile up.
OUR_SETTINGS = {"MSF_MAX_QUEUED_SAMPLES": "1000000", "MSF_RESULT_TTL_S": "10"}
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PeerServer:
    """A peer's command line after its Python, its variables at `{port}`, and a request's body around the plain one."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    template: str = "%s"


PEERS = {
    "mosec": PeerServer(
        ("-m", "bench.peers.adapters.mosec_server"),
        {
            "MOSEC_ADDRESS": "127.0.0.1",
            "MOSEC_PORT": "{port}",
            "MOSEC_TIMEOUT": str(1000 * TIMEOUT_S),
            "MOSEC_CAPACITY": "100000",
            "MOSEC_LOG_LEVEL": "warning",
        },
    ),
    "litserve": PeerServer(("-m", "bench.peers.adapters.litserve_server"), {"BENCH_PEERS_PORT": "{port}"}),
    "bentoml": PeerServer(
        ("-m", "bentoml", "serve", "bench.peers.adapters.bentoml_server:BentoImages"),
        {"BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": "{port}", "BENTOML_DO_NOT_TRACK": "1"},
        template='{"requests": [%s]}',
    ),
    "ray": PeerServer(
        ("-m", "bench.peers.adapters.ray_server"), {"BENCH_PEERS_PORT": "{port}", "RAY_USAGE_STATS_ENABLED": "0"}
    ),
}


class StartError(Exception):
    """A server ended, or did not answer in time, before it was ready."""


@contextmanager
def serve_peer(name: str, python: Path, options: PipelineOptions) -> Iterator[PeerClient]:
    """Run a peer with the plans of `options`; yield a client once it answers. Raises StartError."""
    peer, port = PEERS[name], free_port()
    environment = {
        **os.environ,
        **options.environment(),
        **{name: value.format(port=port) for name, value in peer.environment.items()},
        "PYTHONPATH": os.pathsep.join(str(path) for path in (ROOT / "server", ROOT / "engine", ROOT)),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory(prefix="msf-") as folder:
        log = Path(folder) / "output.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python, *peer.command],
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        client = PeerClient(f"http://127.0.0.1:{port}", peer.template)
        try:
            wait_until_answering(client, process, log)
            yield client
        finally:
            stop(process)


@contextmanager
def serve_ours(options: PipelineOptions) -> Iterator[PeerClient]:
    """Run `msf serve` with the plans of `options`; yield a client."""
    settings = OUR_SETTINGS | ({"MSF_BACKEND": "noop"} if options.noop else {})
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, local_service(Path(folder), **settings) as service:
        yield PeerClient(service.url)


def wait_until_answering(client: PeerClient, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask for an image until one comes. Raises StartError with the end of the server's output."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not asyncio.run(_answers(client)):
        status = process.poll()
        if status is not None or time.monotonic() > deadline:
            reason = "does not answer" if status is None else f"ended with status {status}"
            raise StartError(f"{reason}: {log.read_text(errors='replace')[-600:]}")
        time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a server; kill those of its processes that remain."""
    descendants = []
    with suppress(psutil.NoSuchProcess):
        descendants = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(TimeoutError):
        until(lambda: are_gone(descendants), STOP_TIMEOUT_S)


async def _answers(client: PeerClient) -> bool:
    with suppress(OSError):
        async with client:
            status, _ = await client.post(PlannedRequest(0.0, Kind(), label=0, seed=0))
            return status == 200
    return False
