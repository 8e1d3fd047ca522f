"""Cost of everything around the device: latency, requests per second and CPU time of each process per request.

    python -m bench.service.overhead

Starts `msf serve` with an engine that computes nothing (MSF_BACKEND=noop), then a server without workers beside a
stand-in that answers each claim at once with a ready-made image. The client is a bare socket protocol, because an HTTP
library takes more time than the server that it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image
from tabulate import tabulate

from bench.local_stack import MODEL, LocalService, local_service, start_valkey
from msf_scheduler.connection import connect
from msf_scheduler.jobs import ModelInfo, Timings, WorkerInfo
from msf_scheduler.leases import Leases
from msf_scheduler.registry import Registry

NUM_STEPS = 16
NUM_CALLERS = (1, 16, 64)
WARMUP_S = 1.0
HEARTBEAT_S = 5.0
STAND_IN = "--stand-in-of"
ROLES = ("server", "valkey", "worker", "client")
TIMINGS = Timings(queue_ms=0.1, base_ms=0.1, residual_ms=0.1, decode_ms=0.1, encode_ms=0.1, total_ms=0.5)
Row = list[str | float]  # name, callers, p50, p99, requests/s, then the CPU time of each role


class CallerConnection(asyncio.Protocol):
    """One connection that sends the same request again as soon as it is answered, until `deadline`."""

    def __init__(self, request: bytes, deadline: float) -> None:
        self.latencies_s: list[float] = []
        self.is_done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._deadline = deadline
        self._answer = bytearray()
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_done.done():
            self.is_done.set_exception(exc or ConnectionError("The server closed the connection."))

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, separator, body = self._answer.partition(b"\r\n\r\n")
        if not separator or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.is_done.set_exception(RuntimeError(self._answer.decode()))
        elif time.perf_counter() < self._deadline:
            self.latencies_s.append(time.perf_counter() - self._sent_at)
            self._send()
        else:
            self.is_done.set_result(None)
            self._transport.close()

    def _send(self) -> None:
        self._answer.clear()
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


async def call(url: str, num_callers: int, duration_s: float) -> list[float]:
    """Keep `num_callers` requests in flight; return the latencies in seconds."""
    host, _, port = urlsplit(url).netloc.partition(":")
    body = json.dumps({"prompt": "0", "num_steps": NUM_STEPS}).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}"
    request = f"{head.format(host, len(body))}\r\n\r\n".encode() + body
    deadline = time.perf_counter() + duration_s
    connect_caller = partial(asyncio.get_running_loop().create_connection, lambda: CallerConnection(request, deadline))
    pairs = [await connect_caller(host, int(port)) for _ in range(num_callers)]
    await asyncio.gather(*(caller.is_done for _, caller in pairs))
    return [latency_s for _, caller in pairs for latency_s in caller.latencies_s]


def measure(name: str, url: str, processes: dict[str, psutil.Process], duration_s: float) -> list[Row]:
    """Return a row for each number of callers."""
    rows: list[Row] = []
    asyncio.run(call(url, max(NUM_CALLERS), WARMUP_S))
    for num_callers in NUM_CALLERS:
        before = _cpu_s(processes)
        latencies_s = asyncio.run(call(url, num_callers, duration_s))
        cpu_ms = [
            1000 * (after - start) / len(latencies_s) for start, after in zip(before, _cpu_s(processes), strict=True)
        ]
        p50_ms, p99_ms = (1000 * float(value) for value in np.percentile(latencies_s, (50, 99)))
        rows.append([name, num_callers, p50_ms, p99_ms, len(latencies_s) / duration_s, *cpu_ms])
    return rows


def _cpu_s(processes: dict[str, psutil.Process]) -> np.ndarray:
    times = [(processes | {"client": psutil.Process()})[role].cpu_times() for role in ROLES]
    return np.array([each.user + each.system for each in times])


def measure_service(duration_s: float) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="msf-") as folder,
        local_service(Path(folder), MSF_BACKEND="noop") as service,
    ):
        return measure("no-op engine", service.url, service.msf.processes(), duration_s)


def measure_server(duration_s: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, stand_in_service(Path(folder)) as (service, processes):
        return measure("stand-in", service.url, processes, duration_s)


@contextmanager
def stand_in_service(folder: Path) -> Iterator[tuple[LocalService, dict[str, psutil.Process]]]:
    """Run a Valkey, a stand-in for the worker and a server."""
    redis_url = f"unix://{folder}/valkey.sock"
    valkey = start_valkey(folder)
    while not Path(folder, "valkey.sock").exists():
        time.sleep(0.01)
    worker = subprocess.Popen([sys.executable, "-m", "bench.service.overhead", STAND_IN, redis_url])
    try:
        with local_service(folder, MSF_WORKERS="0", MSF_REDIS_URL=redis_url) as service:
            pids = {"server": service.msf.process.pid, "valkey": valkey.pid, "worker": worker.pid}
            yield service, {role: psutil.Process(pid) for role, pid in pids.items()}
    finally:
        for process in (worker, valkey):
            process.kill()
            process.wait()


async def stand_in(redis_url: str) -> None:
    """Claim and finish jobs until killed."""
    model = ModelInfo(
        name=MODEL,
        version="1",
        labels=tuple(map(str, range(10))),
        image_size=32,
        image_channels=1,
        default_num_steps=16,
        max_num_steps=100,
        default_guidance_scale=2.0,
        max_guidance_scale=10.0,
    )
    info = WorkerInfo(id="stand-in", host="", pid=0, backend="none", num_slots=64, models=(model,))
    file = BytesIO()
    Image.effect_noise((32, 32), 64).save(file, "png")
    images = [file.getvalue()]
    async with connect(redis_url) as redis:
        registry, leases = Registry(redis), Leases(redis)
        await registry.register(info)
        heartbeat_at = time.monotonic() + HEARTBEAT_S
        while True:
            claims = (
                await leases.claim(
                    *(info.id, model.name, model.version), budget_steps=2048, held=(), max_samples=64, idle=True
                )
            ).claims
            await asyncio.gather(*(leases.succeed(claim, images, TIMINGS) for claim in claims))
            if not claims:
                await leases.wait_for_work([(model.name, model.version)], (), HEARTBEAT_S)
            if time.monotonic() > heartbeat_at:
                await registry.heartbeat(info.id)
                heartbeat_at = time.monotonic() + HEARTBEAT_S


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration-s", type=float, default=4.0, help="seconds per measurement (default: 4)")
    parser.add_argument("--only", choices=("service", "server"), help="measure one of the two")
    parser.add_argument(STAND_IN, metavar="REDIS_URL", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stand_in_of:
        asyncio.run(stand_in(options.stand_in_of))
    rows: list[Row] = []
    if options.only != "server":
        rows += measure_service(options.duration_s)
    if options.only != "service":
        rows += measure_server(options.duration_s)
    head = ["worker", "callers", "p50, ms", "p99, ms", "requests/s", *(f"{role}, CPU ms" for role in ROLES)]
    print(tabulate(rows, head, tablefmt="github", floatfmt=".2f"))


if __name__ == "__main__":
    main()
