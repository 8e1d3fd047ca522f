"""The simulator beside the service that it imitates, and what it says of sizes that this machine cannot have.

    python -m bench.service.simulation

1. A service with one worker is sent requests one at a time and then a Poisson load; the time line that its worker
   writes tells what step batches cost and what lies between them. Then the same load five times, for real and
   simulated: throughput should agree within 10 %, p99 lie within the spread of the five.
2. From 1 to 1,000 workers at the same load for each, with the same costs and Redis as one serial server.
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

from bench.local_stack import Service, running_service, until_idle
from msf_cli.commands.plan import TRANSITION_S
from msf_cli.load.arrivals import poisson
from msf_cli.load.generator import LoadClient, measure_alone, open_loop
from msf_cli.load.mix import Kind, Mix, PlannedRequest, Weighted, parse_weighted, plan_load
from msf_cli.load.results import LoadTally, RequestResult
from msf_cli.percentiles import percentile
from msf_cli.simulation.cluster import Hardware, SimulatedCluster, SimulatedJob
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts, Work

MIX = Mix(num_steps=parse_weighted("5:2,20:6,50:1", int), num_samples=Weighted(((1, 0.9), (4, 0.1))))
BUCKETS = (1, 2, 4, 8, 16)
SHORT_GAP_S = 0.005  # a longer one is a worker that waits for work
DEVICE_CORE = 0


def work_of(kind: Kind) -> Work:
    """As the shipped model's config shares steps: a fifth are the residual's."""
    assert kind.num_steps is not None
    num_residual = max(round(kind.num_steps / 5), 1)
    return Work(kind.num_steps - num_residual, num_residual, True, True)


def simulated(requests: Sequence[PlannedRequest]) -> list[SimulatedJob]:
    return [SimulatedJob(each.due_s, each.kind.num_samples, work_of(each.kind)) for each in requests]


def read_trace(folder: Path) -> tuple[StepCosts, float]:
    """What step batches cost, and the seconds between two of a busy worker."""
    [file] = folder.iterdir()
    events: list[dict[str, Any]] = json.loads(f"{file.read_text().rstrip().rstrip(',')}]")
    costs = StepCosts(BUCKETS)
    for event in events:
        stage, *_ = event["name"].split()
        costs.observe(Stage(stage), "guided" in event["name"], event["args"]["bucket"], event["dur"] / 1e6)
    gaps = [(later["ts"] - event["ts"] - event["dur"]) / 1e6 for event, later in pairwise(events)]
    return costs, median(gap for gap in gaps if gap < SHORT_GAP_S)


async def send(service: Service, requests: Sequence[PlannedRequest]) -> list[RequestResult]:
    tally = LoadTally()
    async with LoadClient(service.url) as client:
        await open_loop(client, requests, tally)
    await until_idle(service.url)
    return tally.results


async def alone_s(service: Service, kind: Kind) -> float:
    async with LoadClient(service.url) as client:
        return median(result.latency_s for result in await measure_alone(client, [kind], 15))


def calibrate(service: Service, trace: Path, rate_per_s: float) -> Hardware:
    kind = Kind(20, 1)
    real_alone_s = asyncio.run(alone_s(service, kind))
    asyncio.run(send(service, plan_load(poisson, rate_per_s, 20, MIX, 10, seed=99)))
    costs, step_overhead_s = read_trace(trace)
    hardware = Hardware(costs, step_overhead_s=step_overhead_s, transition_s=TRANSITION_S)
    steps_s = SimulatedCluster(hardware, 1).run([SimulatedJob(0.0, 1, work_of(kind))]).latencies_s[0]
    return Hardware(costs, 32, step_overhead_s, max(real_alone_s - steps_s, 0.0), TRANSITION_S)


def validate(rate_per_s: float, duration_s: float, rounds: int) -> Hardware:
    os.environ["MSF_THREADS"] = "1"
    others = set(range(os.cpu_count() or 1)) - {DEVICE_CORE} or {DEVICE_CORE}
    os.sched_setaffinity(0, others)
    print("| run | real images/s | simulated | real p50, p99 ms | simulated p50, p99 ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="msf-") as name:
        folder = Path(name)
        with running_service(folder, DEVICE_CORE, MSF_TRACE_DIR=str(folder / "trace")) as service:
            hardware = calibrate(service, folder / "trace", rate_per_s)
            rates, p99s = [], []
            for number in range(rounds):
                requests = plan_load(poisson, rate_per_s, duration_s, MIX, 10, seed=number)
                results = asyncio.run(send(service, requests))
                outcome = SimulatedCluster(hardware, 1).run(simulated(requests))
                real = [result.latency_s for result in results]
                real_rate = sum(r.kind.num_samples for r in results) / max(r.ended_s for r in results)
                rates.append(outcome.images_per_s / real_rate)
                p99s.append((percentile(real, 0.99) or 0.0, percentile(outcome.latencies_s, 0.99) or 0.0))
                shown = [_ms(percentile(values, 0.5)) + ", " + _ms(percentile(values, 0.99))
                         for values in (real, outcome.latencies_s)]  # fmt: skip
                print(
                    f"| {number} | {real_rate:.1f} | {outcome.images_per_s:.1f} | {shown[0]} | {shown[1]} |", flush=True
                )
    spread = [real for real, _ in p99s]
    middle = median(simulated for _, simulated in p99s)
    verdict = "within" if min(spread) <= middle <= max(spread) else "outside"
    print(
        f"\nthroughput: simulated over real {median(rates):.2f}; p99 simulated (median) {_ms(middle)} ms is "
        f"{verdict} the spread of the real runs, {_ms(min(spread))} to {_ms(max(spread))} ms"
    )
    return hardware


def scale(hardware: Hardware, rate_per_s: float, numbers: Sequence[int]) -> None:
    print("\n| workers | images/s | devices busy | Redis busy | p50, p99 ms |\n|---|---|---|---|---|")
    for number in numbers:
        requests = plan_load(poisson, number * rate_per_s, max(2000 / (number * rate_per_s), 5), MIX, 10, seed=1)
        outcome = SimulatedCluster(hardware, number).run(simulated(requests))
        p50, p99 = (percentile(outcome.latencies_s, share) for share in (0.5, 0.99))
        print(
            f"| {number} | {outcome.images_per_s:.0f} | {100 * outcome.utilisation:.0f} % | "
            f"{100 * outcome.redis_utilisation:.0f} % | {_ms(p50)}, {_ms(p99)} |",
            flush=True,
        )


def _ms(seconds: float | None) -> str:
    return f"{1000 * (seconds or 0):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=7.0, help="requests per second for each worker")
    parser.add_argument("--duration-s", type=float, default=40.0, help="of each real run")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    hardware = validate(arguments.rate, arguments.duration_s, arguments.rounds)
    scale(hardware, arguments.rate, (1, 10, 100, 1000))


if __name__ == "__main__":
    main()
