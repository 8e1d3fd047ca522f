"""Simulator next to the service that it models, and its forecast for more workers than this machine has.

    python -m bench.service.simulation

1. Sends a Poisson load to a service with one worker, several times, and simulates each of these loads with step costs
   taken from the worker's trace. Prints both; throughput should agree within 10 %, and the simulated p99 should lie
   within the range of the real ones.
2. Prints throughput, utilisation and latency of 1 to 1,000 simulated workers at the same load per worker, with the
   same costs and Redis as one serial server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.local_stack import local_service, until_idle
from msf_cli.commands.plan import TRANSITION_S
from msf_cli.load.arrivals import poisson
from msf_cli.load.generator import LoadClient, measure_alone, open_loop
from msf_cli.load.mix import Kind, Mix, PlannedRequest, Weighted, parse_weighted, plan_load
from msf_cli.load.results import LoadTally, RequestResult
from msf_cli.simulation.cluster import Hardware, SimulatedCluster
from msf_cli.simulation.queue import SimulatedJob
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts, StepPattern

MIX = Mix(num_steps=parse_weighted("5:2,20:6,50:1", int), num_samples=Weighted(((1, 0.9), (4, 0.1))))
NUM_LABELS = 10
BUCKETS = (1, 2, 4, 8, 16)
MAX_GAP_S = 0.005  # between step batches of a busy worker; a longer gap is a worker that waits for work
DEVICE_CORE = 0
CALIBRATION_S = 20.0
NUM_WORKERS = (1, 10, 100, 1000)


def pattern_of(kind: Kind) -> StepPattern:
    """Split the steps like the shipped model's config: a fifth are residual steps."""
    assert kind.num_steps is not None
    num_residual = max(round(kind.num_steps / 5), 1)
    return StepPattern.of([2] * (kind.num_steps - num_residual), [2] * num_residual, [1])


def plan_poisson(rate_per_s: float, duration_s: float, seed: int) -> list[PlannedRequest]:
    return plan_load(poisson, rate_per_s, duration_s, MIX, NUM_LABELS, seed)


def to_simulated(requests: Sequence[PlannedRequest]) -> list[SimulatedJob]:
    return [SimulatedJob(request.due_s, request.kind.num_samples, pattern_of(request.kind)) for request in requests]


def read_trace(folder: Path) -> tuple[StepCosts, float]:
    """Return the costs of step batches, and the median seconds between two of them in a busy worker."""
    [file] = folder.iterdir()
    events: list[dict[str, Any]] = json.loads(f"{file.read_text().rstrip().rstrip(',')}]")
    costs = StepCosts(BUCKETS)
    for event in events:
        stage, *_ = event["name"].split()
        costs.observe(Stage(stage), event["args"]["bucket"], event["dur"] / 1e6)
    gaps_s = [(later["ts"] - event["ts"] - event["dur"]) / 1e6 for event, later in pairwise(events)]
    return costs, median(gap_s for gap_s in gaps_s if gap_s < MAX_GAP_S)


async def send(url: str, requests: Sequence[PlannedRequest]) -> list[RequestResult]:
    tally = LoadTally()
    async with LoadClient(url) as client:
        await open_loop(client, requests, tally)
    await asyncio.to_thread(until_idle, url)
    return tally.results


async def standalone_latency_s(url: str, kind: Kind) -> float:
    async with LoadClient(url) as client:
        return median(result.latency_s for result in await measure_alone(client, [kind], 15))


def calibrate(url: str, trace: Path, rate_per_s: float) -> Hardware:
    """Measure step costs, the overhead per step batch and the overhead per request."""
    kind = Kind(20, 1)
    real_alone_s = asyncio.run(standalone_latency_s(url, kind))
    asyncio.run(send(url, plan_poisson(rate_per_s, CALIBRATION_S, seed=99)))
    costs, step_overhead_s = read_trace(trace)
    hardware = Hardware(costs, step_overhead_s=step_overhead_s, transition_s=TRANSITION_S)
    steps_s = SimulatedCluster(hardware, 1).run([SimulatedJob(0.0, 1, pattern_of(kind))]).latencies_s[0]
    return Hardware(costs, step_overhead_s, max(real_alone_s - steps_s, 0.0), TRANSITION_S)


def compare_with_service(rate_per_s: float, duration_s: float, num_rounds: int) -> Hardware:
    """Print real and simulated runs; return the calibrated hardware."""
    os.sched_setaffinity(0, set(range(os.cpu_count() or 1)) - {DEVICE_CORE} or {DEVICE_CORE})
    rows, ratios, real_p99s, simulated_p99s = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="msf-") as name:
        folder = Path(name)
        trace = folder / "trace"
        with local_service(folder, DEVICE_CORE, MSF_THREADS="1", MSF_TRACE_DIR=str(trace)) as service:
            hardware = calibrate(service.url, trace, rate_per_s)
            for seed in range(num_rounds):
                requests = plan_poisson(rate_per_s, duration_s, seed)
                results = asyncio.run(send(service.url, requests))
                simulated = SimulatedCluster(hardware, 1).run(to_simulated(requests))
                real_rate = sum(r.kind.num_samples for r in results) / max(r.ended_s for r in results)
                real_ms = _p50_p99_ms([result.latency_s for result in results])
                simulated_ms = _p50_p99_ms(simulated.latencies_s)
                rows.append([seed, real_rate, simulated.images_per_s, *real_ms, *simulated_ms])
                ratios.append(simulated.images_per_s / real_rate)
                real_p99s.append(real_ms[1])
                simulated_p99s.append(simulated_ms[1])
    head = ["run", "real images/s", "simulated", "real p50, ms", "p99, ms", "simulated p50, ms", "p99, ms"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=("d", ".1f", ".1f", ".0f", ".0f", ".0f", ".0f")))
    middle_ms = median(simulated_p99s)
    verdict = "within" if min(real_p99s) <= middle_ms <= max(real_p99s) else "outside"
    print(
        f"\nThroughput: simulated / real = {median(ratios):.2f}. p99: simulated {middle_ms:.0f} ms (median) is "
        f"{verdict} the range of the real runs, {min(real_p99s):.0f} to {max(real_p99s):.0f} ms.\n"
    )
    return hardware


def print_forecast(hardware: Hardware, rate_per_s: float) -> None:
    rows = []
    for num_workers in NUM_WORKERS:
        total_per_s = num_workers * rate_per_s
        requests = plan_poisson(total_per_s, max(2000 / total_per_s, 5), seed=1)
        simulated = SimulatedCluster(hardware, num_workers).run(to_simulated(requests))
        busy = (f"{share:.0%}" for share in (simulated.utilisation, simulated.redis_utilisation))
        rows.append([num_workers, simulated.images_per_s, *busy, *_p50_p99_ms(simulated.latencies_s)])
    head = ["workers", "images/s", "devices busy", "Redis busy", "p50, ms", "p99, ms"]
    print(tabulate(rows, head, tablefmt="github", floatfmt=".0f"))


def _p50_p99_ms(latencies_s: Sequence[float]) -> tuple[float, float]:
    p50_s, p99_s = np.percentile(latencies_s, (50, 99))
    return 1000 * float(p50_s), 1000 * float(p99_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=7.0, help="requests per second and worker (default: 7)")
    parser.add_argument("--duration-s", type=float, default=40.0, help="seconds per run (default: 40)")
    parser.add_argument("--rounds", type=int, default=5, help="runs (default: 5)")
    arguments = parser.parse_args()
    hardware = compare_with_service(arguments.rate, arguments.duration_s, arguments.rounds)
    print_forecast(hardware, arguments.rate)


if __name__ == "__main__":
    main()
