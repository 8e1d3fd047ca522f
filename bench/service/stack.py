"""What the service costs beside the device: HTTP, queue, batching, encoding.

    python -m bench.service.stack

1. With an engine that computes nothing (MSF_BACKEND=noop): requests per second with many callers, and the latency of
   one at a time, which is all added.
2. With the real engine: the share of its own throughput that is kept at saturation. The worker is pinned to one core
   and all else to the others, and so is the engine's loop; the two run in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median

from bench.faults.soak import family
from bench.local_stack import MODEL, Service, running_service
from bench.service.serve import alone, percentile, saturated

DEVICE_CORE = 0


def pin(pid: int, cores: set[int]) -> None:
    """All threads of a process, those too that it has already started."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def engine_rate(num_images: int) -> float:
    """Images per second of the engine's own loop, in a process pinned as the worker is."""
    code = (
        f"import os; os.sched_setaffinity(0, {{{DEVICE_CORE}}})\n"
        "from bench.service.serve import _executor, engine_loop\n"
        "from msf_cli.settings import read_settings\n"
        "from msf_engine.repository import read_version\n"
        f"settings = read_settings(); version = read_version(settings.model_repo, {MODEL!r})\n"
        f"print(engine_loop(_executor(settings, version), version, {num_images}))\n"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def measure_noop(num_requests: int) -> list[tuple[str, str]]:
    with (
        tempfile.TemporaryDirectory(prefix="msf-") as folder,
        running_service(Path(folder), MSF_BACKEND="noop") as noop,
    ):
        single = [one["client"] for one in asyncio.run(alone(noop, num_requests))]
        rates = {clients: asyncio.run(saturated(noop, 4 * num_requests, clients)) for clients in (8, 32, 64)}
    return [
        ("no-op engine: added to one request", f"p50 {median(single):.1f} ms, p99 {percentile(single, 0.99):.1f} ms"),
        *((f"no-op engine: {clients} callers", f"{rate:.0f} requests/s") for clients, rate in rates.items()),
    ]


def measure_share(num_images: int, rounds: int) -> list[tuple[str, str]]:
    others = set(range(os.cpu_count() or 1)) - {DEVICE_CORE} or {DEVICE_CORE}
    os.sched_setaffinity(0, others)
    os.environ["MSF_THREADS"] = "1"
    served: list[float] = []
    engine: list[float] = []
    with tempfile.TemporaryDirectory(prefix="msf-") as folder, running_service(Path(folder)) as service:
        _pin_service(service, others)
        for _ in range(rounds):
            engine.append(engine_rate(num_images))
            served.append(asyncio.run(saturated(service, num_images, 64)))
    ratios = [one / other for one, other in zip(served, engine, strict=True)]
    return [
        ("at saturation: served", f"{median(served):.1f} images/s"),
        ("at saturation: engine's loop", f"{median(engine):.1f} images/s"),
        ("at saturation: share kept", f"{100 * median(ratios):.0f} % ({_shown(ratios)})"),
    ]


def _pin_service(service: Service, others: set[int]) -> None:
    for name, pid in family(service.pid).items():
        pin(pid, {DEVICE_CORE} if name == "worker" else others)


def _shown(ratios: Sequence[float]) -> str:
    return ", ".join(f"{100 * ratio:.0f}" for ratio in ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [("measure", "value"), ("---", "---"), *measure_noop(arguments.requests)]
    rows += measure_share(2 * arguments.requests, arguments.rounds)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"| {name:<{width}} | {value} |" for name, value in rows))


if __name__ == "__main__":
    main()
