"""The served speed: start, latency of one image, throughput beside the engine's own loop, memory.

    python -m bench.service.serve

starts `msf serve` with the settings of the environment on a free port, measures, and prints a table. The engine's loop
runs the same plans in this process, in turns with the served load, so that both meet the machine in the same state.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import httpx

from bench.local_stack import MODEL, Service, running_service
from msf_cli.loading import load_model
from msf_cli.settings import Settings, read_settings
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion, read_version

PARTS = ("queue", "base", "residual", "decode", "encode", "total")


async def alone(service: Service, num_requests: int) -> list[dict[str, float]]:
    """One image at a time: the client's wall time and the server's account of it, in ms."""
    measured = []
    async with httpx.AsyncClient(base_url=service.url, timeout=120) as client:
        for seed in range(num_requests + 3):
            started_at = time.perf_counter()
            answer = await _image(client, seed)
            wall_ms = 1000 * (time.perf_counter() - started_at)
            timings = answer.json()["timings"]
            measured.append({"client": wall_ms, **{part: timings[f"{part}_ms"] for part in PARTS}})
    return measured[3:]


async def saturated(service: Service, num_requests: int, num_clients: int) -> float:
    """Images per second with `num_clients` requests of one image always under way."""
    waiting = iter(range(num_requests))
    async with httpx.AsyncClient(
        base_url=service.url, timeout=300, limits=httpx.Limits(max_connections=num_clients)
    ) as client:

        async def keep_asking() -> None:
            for seed in waiting:
                await _image(client, seed)

        started_at = time.perf_counter()
        await asyncio.gather(*(keep_asking() for _ in range(num_clients)))
        return num_requests / (time.perf_counter() - started_at)


async def _image(client: httpx.AsyncClient, seed: int) -> httpx.Response:
    body = {"prompt": str(seed % 10), "seed": seed, "cache": False}
    answer = await client.post("/v1/images/generations", json=body)
    return answer.raise_for_status()


def engine_loop(plans: ModelPlans, version: ModelVersion, num_images: int) -> float:
    """Images per second of the plans alone, the same images."""
    config = version.config
    steps, scale = config.split_steps(config.default_num_steps), config.sampling.default_guidance_scale
    requests = [SampleRequest(seed % config.num_classes, seed, 0, *steps, scale) for seed in range(num_images)]
    started_at = time.perf_counter()
    generate(plans, requests)
    return num_images / (time.perf_counter() - started_at)


def peak_memory(root: int) -> dict[str, float]:
    """Peak resident MB of the service's processes by name."""
    peaks: dict[str, float] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(re.findall(r"^(\w+):\s+(.*)$", status.read_text(), re.MULTILINE))
            command = (status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if int(fields["Pid"]) == root:
            name = "server"
        elif int(fields["PPid"]) != root and "valkey-server" not in command:
            continue
        else:
            name = "valkey" if "valkey-server" in command else "warden" if "warden" in command else "worker"
        peaks[name] = max(peaks.get(name, 0), int(fields["VmHWM"].split()[0]) / 1024)
    return peaks


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="requests of each measurement")
    parser.add_argument("--clients", type=int, default=64, help="requests under way at saturation")
    parser.add_argument("--rounds", type=int, default=3, help="turns of served load and engine loop")
    arguments = parser.parse_args()
    settings = read_settings()
    version = read_version(settings.model_repo, MODEL)
    plans = _plans(settings, version)  # also compiles what is not cached, so that the start below finds it
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, running_service(Path(folder)) as service:
        single = asyncio.run(alone(service, arguments.requests))
        served, engine = [], []
        for _ in range(arguments.rounds):
            served.append(asyncio.run(saturated(service, 4 * arguments.requests, arguments.clients)))
            engine.append(engine_loop(plans, version, 4 * arguments.requests))
        _report(settings, version, service, single, served, engine, peak_memory(service.pid))


def _plans(settings: Settings, version: ModelVersion) -> ModelPlans:
    _, plans = load_model(settings, version)
    engine_loop(plans, version, settings.slots)
    return plans


def _report(
    settings: Settings,
    version: ModelVersion,
    service: Service,
    single: Sequence[dict[str, float]],
    served: Sequence[float],
    engine: Sequence[float],
    memory: dict[str, float],
) -> None:
    config = version.config
    steps = f"{config.base.default_num_steps}+{config.residual.default_num_steps}"
    rows = [("ready after", f"{service.started_in_s:.1f} s (plans cached)")]
    for part in ("client", *PARTS):
        values = [one[part] for one in single]
        rows.append((f"one image: {part}", f"p50 {median(values):.1f} ms, p99 {percentile(values, 0.99):.1f} ms"))
    ratios = [one / other for one, other in zip(served, engine, strict=True)]
    rows += [
        ("at saturation: served", f"{median(served):.1f} images/s"),
        ("at saturation: engine's loop", f"{median(engine):.1f} images/s"),
        ("at saturation: share kept", f"{100 * median(ratios):.0f} % (each round's ratio, median)"),
        *((f"peak memory: {name}", f"{size:.0f} MB") for name, size in sorted(memory.items())),
    ]
    print(f"{version.name} {version.version}, {steps} steps, guidance {config.sampling.default_guidance_scale}")
    print(f"{_cpu()}, {os.cpu_count()} cores; {settings.backend or 'default backend'}, {settings.threads} threads")
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in [("measure", "value"), ("---", "---"), *rows]))


def _cpu() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else platform.processor()


if __name__ == "__main__":
    main()
