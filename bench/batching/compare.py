"""Step-level against request-level batching: the same code, plans, machine and requests, in one run.

    python -m bench.batching.compare [--quick]

Finds request-level batching's best size and delay first, then its capacity, and loads services of both policies in
turns at fractions of that, each pair with the same requests at the same times. Every process of a service is on one
core with one thread, and the generator on the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.batching.report import (
    HEADLINE_FRACTION,
    POLICIES,
    REQUEST,
    STEP,
    Cell,
    Comparison,
    Setting,
    Trial,
    as_json,
    markdown,
    plot,
)
from bench.local_stack import Service, running_service, until_idle
from msf_cli.load.arrivals import Arrivals, bursty, poisson
from msf_cli.load.generator import LoadClient, closed_loop, measure_alone, open_loop
from msf_cli.load.mix import Mix, parse_weighted, plan_load, plan_typical
from msf_cli.load.report import standalone_latencies, summarize
from msf_cli.load.results import LoadTally, RequestResult
from msf_cli.percentiles import percentile

MIX = Mix(num_steps=parse_weighted("4:4,20:4,100:1", int), num_samples=parse_weighted("1:9,4:1", int))
NUM_IN_FLIGHT = 32  # at saturation: some 40 samples, more than the worker has slots
NUM_IN_FLIGHT_WARM = 8  # soon drained
MIN_REQUESTS = 30  # of a load, which lasts longer at a low rate
NEAR_BEST = 0.9  # settings of less than this share of the best capacity would be near saturation at the trials' load
TRIAL_SEED, CAPACITY_SEED, WARMUP_SEED = 1001, 1002, 1003
# Nothing is refused while the queue of an overload grows, and no results pile up.
SETTINGS = {"MSF_THREADS": "1", "MSF_MAX_QUEUED_SAMPLES": "1000000", "MSF_RESULT_TTL_S": "10"}
ARRIVALS: dict[str, Arrivals] = {"poisson": poisson, "bursty": bursty}


@dataclass(frozen=True)
class Budget:
    """How much is measured. One size and one delay are taken without trials.

    A load lasts `cell_s`, but for those of the headlines, `headline_s`: a p99 wants many requests. Capacity is found
    by `num_saturating` requests, always the same, in the mix's own proportions.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    delays_s: tuple[float, ...] = (0.0, 0.02, 0.1)
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
    num_rounds: int = 3
    cell_s: float = 6.0
    headline_s: float = 18.0
    num_warmup: int = 20
    num_saturating: int = 100
    num_alone_runs: int = 5


QUICK = Budget(
    (8,), (0.02,), (0.5, 0.8, 1.2), num_rounds=1, cell_s=4.0, headline_s=6.0, num_saturating=50, num_alone_runs=2
)


@dataclass(frozen=True)
class Bench:
    """Starts services and loads them. `core`: the services' own; None where the generator must share it."""

    budget: Budget
    core: int | None

    @contextmanager
    def service(self, policy: str, setting: Setting) -> Iterator[Service]:
        batching = {
            "MSF_BATCHING": "step" if policy == STEP else "request",
            "MSF_BATCH_SIZE": str(setting.size),
            "MSF_BATCH_DELAY_S": str(setting.delay_s),
        }
        with (
            tempfile.TemporaryDirectory(prefix="msf-") as folder,
            running_service(Path(folder), self.core, **SETTINGS, **batching) as service,
        ):
            yield service

    async def warm_up(self, service: Service) -> None:
        await self._saturate(service, NUM_IN_FLIGHT_WARM, self.budget.num_warmup, WARMUP_SEED)

    async def capacity(self, service: Service) -> float:
        """Requests per second with `NUM_IN_FLIGHT` always under way."""
        results = await self._saturate(service, NUM_IN_FLIGHT, self.budget.num_saturating, CAPACITY_SEED)
        return summarize(results, {}, ()).requests_per_s

    async def _saturate(
        self, service: Service, num_in_flight: int, num_requests: int, seed: int
    ) -> list[RequestResult]:
        await until_idle(service.url)
        tally = LoadTally()
        async with LoadClient(service.url) as client:
            requests = plan_typical(num_requests, MIX, await client.num_labels(), seed)
            await closed_loop(client, requests, num_in_flight, tally)
        return tally.results

    async def load(
        self, service: Service, arrivals: str, rate_per_s: float, duration_s: float, seed: int
    ) -> list[RequestResult]:
        await until_idle(service.url)
        tally = LoadTally()
        async with LoadClient(service.url) as client:
            num_labels = await client.num_labels()
            requests = plan_load(ARRIVALS[arrivals], rate_per_s, duration_s, MIX, num_labels, seed)
            await open_loop(client, requests, tally)
        return tally.results

    async def alone(self, service: Service) -> list[RequestResult]:
        await until_idle(service.url)
        async with LoadClient(service.url) as client:
            return await measure_alone(client, MIX.kinds, self.budget.num_alone_runs)


async def compare(bench: Bench) -> Comparison:
    budget = bench.budget
    trials, trial_rate_per_s, chosen = await _choose(bench)
    with bench.service(STEP, chosen) as step, bench.service(REQUEST, chosen) as request:
        services = {STEP: step, REQUEST: request}
        capacity_per_s = {}
        for policy, service in services.items():
            await bench.warm_up(service)
            capacity_per_s[policy] = await bench.capacity(service)
            _say(f"{policy}: {capacity_per_s[policy]:.1f} requests/s at saturation")
        alone = [standalone_latencies(await bench.alone(service)) for service in services.values()]
        standalone = {kind: min(latencies[kind] for latencies in alone) for kind in MIX.kinds}
        cells = []
        for number in range(budget.num_rounds):
            loads = [("poisson", fraction) for fraction in budget.fractions] + [("bursty", HEADLINE_FRACTION)]
            for place, (arrivals, fraction) in enumerate(loads):
                rate_per_s = fraction * capacity_per_s[REQUEST]
                duration_s = budget.headline_s if fraction == HEADLINE_FRACTION else budget.cell_s
                duration_s = max(duration_s, MIN_REQUESTS / rate_per_s)
                for policy in POLICIES if (number + place) % 2 else reversed(POLICIES):
                    results = await bench.load(services[policy], arrivals, rate_per_s, duration_s, seed=number)
                    cells.append(Cell(policy, arrivals, fraction, rate_per_s, number, results))
                    _say(f"round {number + 1}, {arrivals} {rate_per_s:.1f}/s, {policy}: {_p99_text(results)}")
    return Comparison(_setup(bench), trials, trial_rate_per_s, chosen, standalone, capacity_per_s, cells)


async def _choose(bench: Bench) -> tuple[list[Trial], float, Setting]:
    """The trials, their load in requests/s, and the setting with the lowest p99, then the largest capacity.

    All settings meet the same load, 80 % of the largest capacity: each at its own would favour the slowest.
    """
    budget = bench.budget
    if len(budget.sizes) == len(budget.delays_s) == 1:
        return [], 0.0, Setting(budget.sizes[0], budget.delays_s[0])
    capacities = []  # by size alone: at saturation batches fill at once, and the delay hardly matters
    for setting in (Setting(size, budget.delays_s[0]) for size in budget.sizes):
        with bench.service(REQUEST, setting) as service:
            await bench.warm_up(service)
            capacities.append(Trial(setting, await bench.capacity(service)))
        _say(f"batches of {setting.size}: {capacities[-1].capacity_per_s:.1f} requests/s at saturation")
    best_per_s = max(trial.capacity_per_s for trial in capacities)
    trials = [trial for trial in capacities if trial.capacity_per_s < NEAR_BEST * best_per_s]
    candidates = [
        replace(trial, setting=replace(trial.setting, delay_s=delay_s))
        for trial in capacities
        if trial not in trials
        for delay_s in budget.delays_s
    ]
    for trial in candidates:
        with bench.service(REQUEST, trial.setting) as service:
            await bench.warm_up(service)
            rate_per_s = HEADLINE_FRACTION * best_per_s
            results = await bench.load(service, "poisson", rate_per_s, budget.headline_s, TRIAL_SEED)
        trials.append(replace(trial, p99_s=percentile([result.latency_s for result in results], 0.99)))
        _say(f"{trial.setting}: {_p99_text(results)}")
    best = min(trials, key=lambda trial: (math.inf if trial.p99_s is None else trial.p99_s, -trial.capacity_per_s))
    return trials, HEADLINE_FRACTION * best_per_s, best.setting


def _setup(bench: Bench) -> list[str]:
    pinned = "the same cores" if bench.core is None else f"core {bench.core}, the generator on the others"
    budget = bench.budget
    return [
        f"{_cpu()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; services on {pinned}; one thread each",
        "mix: num_steps 4 : 20 : 100 as 4 : 4 : 1, and n 1 : 4 as 9 : 1; guidance by default; an open loop, latency "
        "from the intended send time",
        f"{budget.num_rounds} rounds of both policies in turns, with the same requests; a load takes "
        f"{budget.cell_s:g} s, one of the headlines {budget.headline_s:g} s",
    ]


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def _p99_text(results: list[RequestResult]) -> str:
    overall = summarize(results, {}, ()).overall
    return f"{overall.num_requests} requests, p50 {overall.p50_s or 0:.2f} s, p99 {overall.p99_s or 0:.2f} s"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _take_cores() -> int | None:
    """Leave the first core to the services and keep the others; None where there is only one, or no choice."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return None
    os.sched_setaffinity(0, others)
    return first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes: fewer rates, one setting of request-level")
    parser.add_argument("--rounds", type=int, help="rounds of all loads (default: 3)")
    parser.add_argument("--cell-s", type=float, help="seconds of each load (default: 6)")
    parser.add_argument("--headline-s", type=float, help="seconds of each load of the headlines (default: 18)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-batching"), help="folder of the report")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else Budget()
    budget = replace(
        budget,
        num_rounds=arguments.rounds or budget.num_rounds,
        cell_s=arguments.cell_s or budget.cell_s,
        headline_s=arguments.headline_s or budget.headline_s,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    comparison = asyncio.run(compare(Bench(budget, _take_cores())))
    text = markdown(comparison)
    (arguments.out / "report.md").write_text(text)
    (arguments.out / "results.json").write_text(json.dumps(as_json(comparison), indent=1) + "\n")
    (arguments.out / "plot.svg").write_text(plot(comparison))
    print(text)


if __name__ == "__main__":
    main()
