"""Served speed: latency of one image, throughput next to the engine's own loop, memory.

    python -m bench.service.speed

starts `msf serve` on a free port with the settings of the environment and prints a table: latency by part, images per
second at saturation, resident memory. The engine's loop runs the same plans in this process, in turns with the served
load, so that both see the machine in the same state. With a second service, whose engine computes nothing
(MSF_BACKEND=noop), it measures what HTTP, queue, batching and encoding cost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import httpx
import numpy as np
from tabulate import tabulate

from bench.local_stack import MODEL, LocalService, local_service, resident_mb
from msf_cli.loading import load_model
from msf_cli.settings import Settings, read_settings
from msf_engine.device import cpu_name
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion, read_version

PARTS = ("queue", "base", "residual", "decode", "encode", "total")
NUM_WARMUP = 3
NUM_WARMUP_IMAGES = 32
Rows = list[tuple[str, str]]


async def single_latencies(url: str, num_requests: int) -> list[dict[str, float]]:
    """Request one image at a time; return the client's wall time and the server's parts of it, in ms."""
    latencies = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for seed in range(num_requests + NUM_WARMUP):
            started_at = time.perf_counter()
            timings = (await _request_image(client, seed)).json()["timings"]
            client_ms = 1000 * (time.perf_counter() - started_at)
            latencies.append({"client": client_ms, **{part: timings[f"{part}_ms"] for part in PARTS}})
    return latencies[NUM_WARMUP:]


async def saturated_rate(url: str, num_requests: int, num_clients: int) -> float:
    """Return images per second with `num_clients` requests of one image always in flight."""
    seeds = iter(range(num_requests))
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def send_requests() -> None:
            for seed in seeds:
                await _request_image(client, seed)

        started_at = time.perf_counter()
        await asyncio.gather(*(send_requests() for _ in range(num_clients)))
        return num_requests / (time.perf_counter() - started_at)


async def _request_image(client: httpx.AsyncClient, seed: int) -> httpx.Response:
    body = {"model": MODEL, "prompt": str(seed % 10), "seed": seed, "cache": False}
    return (await client.post("/v1/images/generations", json=body)).raise_for_status()


def engine_rate(plans: ModelPlans, version: ModelVersion, num_images: int) -> float:
    """Return images per second of the plans alone, on the same requests."""
    config = version.config
    steps, scale = config.split_steps(config.default_num_steps), config.sampling.default_guidance_scale
    requests = [SampleRequest(seed % config.num_classes, seed, 0, steps, scale) for seed in range(num_images)]
    started_at = time.perf_counter()
    generate(plans, requests)
    return num_images / (time.perf_counter() - started_at)


def measure_service_cost(num_requests: int) -> Rows:
    with (
        tempfile.TemporaryDirectory(prefix="msf-") as folder,
        local_service(Path(folder), MSF_BACKEND="noop") as service,
    ):
        latencies = asyncio.run(single_latencies(service.url, num_requests))
        rates = {
            num_clients: asyncio.run(saturated_rate(service.url, 4 * num_requests, num_clients))
            for num_clients in (8, 32, 64)
        }
    return [
        ("no-op engine: one request", _percentiles([latency["client"] for latency in latencies])),
        *((f"no-op engine: {num_clients} clients", f"{rate:.0f} requests/s") for num_clients, rate in rates.items()),
    ]


def measure_service(
    service: LocalService, plans: ModelPlans, version: ModelVersion, arguments: argparse.Namespace
) -> Rows:
    rows = [("ready after", f"{service.ready_after_s:.1f} s (plans cached)")]
    latencies = asyncio.run(single_latencies(service.url, arguments.requests))
    for part in ("client", *PARTS):
        rows.append((f"one image: {part}", _percentiles([latency[part] for latency in latencies])))
    service_rates, engine_rates = [], []
    for _ in range(arguments.rounds):
        service_rates.append(asyncio.run(saturated_rate(service.url, 4 * arguments.requests, arguments.clients)))
        engine_rates.append(engine_rate(plans, version, 4 * arguments.requests))
    ratios = [one / other for one, other in zip(service_rates, engine_rates, strict=True)]
    rows += [
        ("saturated: service", f"{median(service_rates):.1f} images/s"),
        ("saturated: engine's loop", f"{median(engine_rates):.1f} images/s"),
        ("saturated: service / engine", f"{100 * median(ratios):.0f} % (median of the rounds' ratios)"),
    ]
    memory_mb = {role: resident_mb(process) for role, process in service.msf.processes().items()}
    return rows + [(f"resident memory: {role}", f"{size_mb:.0f} MB") for role, size_mb in sorted(memory_mb.items())]


def _percentiles(latencies_ms: Sequence[float]) -> str:
    p50, p99 = np.percentile(latencies_ms, (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"


def _load_plans(settings: Settings, version: ModelVersion) -> ModelPlans:
    """Compile the plans that are not cached, so that the service finds them, and warm up."""
    _, plans = load_model(settings, version)
    engine_rate(plans, version, NUM_WARMUP_IMAGES)
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="requests per measurement (default: 100)")
    parser.add_argument("--clients", type=int, default=64, help="requests in flight at saturation (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of service and engine in turns (default: 3)")
    arguments = parser.parse_args()
    settings = read_settings()
    version = read_version(settings.model_repo, MODEL)
    plans = _load_plans(settings, version)
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, local_service(Path(folder)) as service:
        rows = measure_service(service, plans, version, arguments)
    rows += measure_service_cost(arguments.requests)
    config = version.config
    steps = "+".join(str(stage.default_num_steps) for stage in config.stages)
    print(f"{version.name} {version.version}, {steps} steps, guidance {config.sampling.default_guidance_scale}")
    print(
        f"{cpu_name()}, {os.cpu_count()} cores; {settings.backend or 'default backend'}, {settings.threads} threads\n"
    )
    print(tabulate(rows, ["measure", "value"], tablefmt="github"))


if __name__ == "__main__":
    main()
