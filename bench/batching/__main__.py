"""Step-level against request-level batching: same code, plans, machine and requests, in one run.

    python -m bench.batching [--quick]

finds request-level batching's best size and delay, then its capacity, and loads services of both policies in turns at
fractions of it, each pair with the same requests at the same times. Each service has one core and one thread; the load
generator has the other cores. Prints a report and writes it with a plot to --out.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
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
    PolicyComparison,
    PolicyLoad,
    RequestLevelSetting,
    SettingResult,
    markdown,
    plot,
)
from bench.local_stack import local_service, until_idle
from bench.mixed_load import MIX
from msf_cli.load.arrivals import Arrivals, bursty, poisson
from msf_cli.load.generator import LoadClient, closed_loop, measure_alone, open_loop
from msf_cli.load.mix import plan_load, plan_typical
from msf_cli.load.report import standalone_latencies, summarize
from msf_cli.load.results import LoadTally, RequestResult
from msf_engine.device import cpu_name

NUM_IN_FLIGHT = 32  # at saturation: about 40 samples, more than the worker has slots
NUM_IN_FLIGHT_WARM = 8  # drains quickly
MIN_REQUESTS = 30  # per load; at a low rate the load lasts longer
NEAR_BEST = 0.9  # settings below this share of the best capacity would be near saturation at the common load
SETTING_SEED, CAPACITY_SEED, WARMUP_SEED = 1001, 1002, 1003
# An overload's queue may grow without refusals, and results do not pile up.
SETTINGS = {"MSF_THREADS": "1", "MSF_MAX_QUEUED_SAMPLES": "1000000", "MSF_RESULT_TTL_S": "10"}
PROCESSES: dict[str, Arrivals] = {"poisson": poisson, "bursty": bursty}


@dataclass(frozen=True)
class BenchBudget:
    """Amount of measuring. A single size and delay are used as given.

    A load lasts `load_s`, and `headline_s` for the headlines, since a p99 needs many requests. Capacity is measured
    with `num_saturating` requests, always the same, in the proportions of the mix.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    delays_s: tuple[float, ...] = (0.0, 0.02, 0.1)
    fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
    num_rounds: int = 3
    load_s: float = 6.0
    headline_s: float = 18.0
    num_warmup: int = 20
    num_saturating: int = 100
    num_alone_runs: int = 5


QUICK = BenchBudget(
    (8,), (0.02,), (0.5, 0.8, 1.2), num_rounds=1, load_s=4.0, headline_s=6.0, num_saturating=50, num_alone_runs=2
)


@contextmanager
def batching_service(policy: str, setting: RequestLevelSetting, core: int | None) -> Iterator[str]:
    """Run a service with a batching policy; yield its URL."""
    batching = {
        "MSF_BATCHING": "step" if policy == STEP else "request",
        "MSF_BATCH_SIZE": str(setting.size),
        "MSF_BATCH_DELAY_S": str(setting.delay_s),
    }
    with (
        tempfile.TemporaryDirectory(prefix="msf-") as folder,
        local_service(Path(folder), core, **SETTINGS, **batching) as service,
    ):
        yield service.url


async def saturate(url: str, num_in_flight: int, num_requests: int, seed: int) -> float:
    """Return requests per second with `num_in_flight` always in flight."""
    await asyncio.to_thread(until_idle, url)
    tally = LoadTally()
    async with LoadClient(url) as client:
        requests = plan_typical(num_requests, MIX, await client.num_labels(), seed)
        await closed_loop(client, requests, num_in_flight, tally)
    return summarize(tally.results, {}, ()).requests_per_s


async def apply_load(url: str, arrivals: str, rate_per_s: float, duration_s: float, seed: int) -> list[RequestResult]:
    await asyncio.to_thread(until_idle, url)
    tally = LoadTally()
    async with LoadClient(url) as client:
        num_labels = await client.num_labels()
        requests = plan_load(PROCESSES[arrivals], rate_per_s, duration_s, MIX, num_labels, seed)
        await open_loop(client, requests, tally)
    return tally.results


async def measure_standalone(url: str, num_runs: int) -> list[RequestResult]:
    await asyncio.to_thread(until_idle, url)
    async with LoadClient(url) as client:
        return await measure_alone(client, MIX.kinds, num_runs)


async def compare(budget: BenchBudget, core: int | None) -> PolicyComparison:
    settings, common_rate_per_s, best = await choose_setting(budget, core)
    with batching_service(STEP, best, core) as step_url, batching_service(REQUEST, best, core) as request_url:
        urls = {STEP: step_url, REQUEST: request_url}
        capacity_per_s = {}
        for policy, url in urls.items():
            capacity_per_s[policy] = await measure_capacity(url, budget)
            _log(f"{policy}: {capacity_per_s[policy]:.1f} requests/s at saturation")
        alone = [standalone_latencies(await measure_standalone(url, budget.num_alone_runs)) for url in urls.values()]
        standalone = {kind: min(latencies[kind] for latencies in alone) for kind in MIX.kinds}
        loads = []
        for number in range(budget.num_rounds):
            cases = [("poisson", fraction) for fraction in budget.fractions] + [("bursty", HEADLINE_FRACTION)]
            for place, (arrivals, fraction) in enumerate(cases):
                rate_per_s = fraction * capacity_per_s[REQUEST]
                duration_s = budget.headline_s if fraction == HEADLINE_FRACTION else budget.load_s
                duration_s = max(duration_s, MIN_REQUESTS / rate_per_s)
                for policy in POLICIES if (number + place) % 2 else reversed(POLICIES):
                    results = await apply_load(urls[policy], arrivals, rate_per_s, duration_s, seed=number)
                    loads.append(PolicyLoad(policy, arrivals, fraction, rate_per_s, number, results))
                    _log(f"round {number + 1}, {arrivals} {rate_per_s:.1f}/s, {policy}: {_p99_text(results)}")
    return PolicyComparison(_setup(budget, core), settings, common_rate_per_s, best, standalone, capacity_per_s, loads)


async def measure_capacity(url: str, budget: BenchBudget) -> float:
    await saturate(url, NUM_IN_FLIGHT_WARM, budget.num_warmup, WARMUP_SEED)
    return await saturate(url, NUM_IN_FLIGHT, budget.num_saturating, CAPACITY_SEED)


async def choose_setting(
    budget: BenchBudget, core: int | None
) -> tuple[list[SettingResult], float, RequestLevelSetting]:
    """Return all settings' results, their load in requests/s, and the setting with the lowest p99.

    All settings get the same load, 80 % of the largest capacity: loads relative to their own would favour slow ones.
    """
    if len(budget.sizes) == len(budget.delays_s) == 1:
        return [], 0.0, RequestLevelSetting(budget.sizes[0], budget.delays_s[0])
    capacities = []  # by size alone: at saturation batches fill at once, and the delay hardly matters
    for setting in (RequestLevelSetting(size, budget.delays_s[0]) for size in budget.sizes):
        with batching_service(REQUEST, setting, core) as url:
            capacities.append(SettingResult(setting, await measure_capacity(url, budget)))
        _log(f"batches of {setting.size}: {capacities[-1].capacity_per_s:.1f} requests/s at saturation")
    best_per_s = max(result.capacity_per_s for result in capacities)
    results = [result for result in capacities if result.capacity_per_s < NEAR_BEST * best_per_s]
    for candidate in (result for result in capacities if result not in results):
        for delay_s in budget.delays_s:
            setting = replace(candidate.setting, delay_s=delay_s)
            with batching_service(REQUEST, setting, core) as url:
                await saturate(url, NUM_IN_FLIGHT_WARM, budget.num_warmup, WARMUP_SEED)
                rate_per_s = HEADLINE_FRACTION * best_per_s
                answers = await apply_load(url, "poisson", rate_per_s, budget.headline_s, SETTING_SEED)
            p99_s = summarize(answers, {}, ()).overall.p99_s
            results.append(SettingResult(setting, candidate.capacity_per_s, p99_s))
            _log(f"{setting}: {_p99_text(answers)}")
    best = min(results, key=lambda result: (math.inf if result.p99_s is None else result.p99_s, -result.capacity_per_s))
    return results, HEADLINE_FRACTION * best_per_s, best.setting


def _setup(budget: BenchBudget, core: int | None) -> list[str]:
    cores = "the same cores" if core is None else f"core {core}, the generator on the others"
    return [
        f"{cpu_name()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; services on {cores}; one thread each",
        "mix: num_steps 4 : 20 : 100 as 4 : 4 : 1, and n 1 : 4 as 9 : 1; default guidance; open loop, latency "
        "from the intended send time",
        f"{budget.num_rounds} rounds of both policies in turns, with the same requests; a load takes "
        f"{budget.load_s:g} s, a headline's {budget.headline_s:g} s",
    ]


def _p99_text(results: list[RequestResult]) -> str:
    overall = summarize(results, {}, ()).overall
    return f"{overall.num_requests} requests, p50 {overall.p50_s or 0:.2f} s, p99 {overall.p99_s or 0:.2f} s"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _reserve_core() -> int | None:
    """Leave the first core to the services and keep the others; return None if there is only one, or no choice."""
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
    parser.add_argument("--load-s", type=float, help="seconds per load (default: 6)")
    parser.add_argument("--headline-s", type=float, help="seconds per load of the headlines (default: 18)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-batching"), help="folder of the report")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else BenchBudget()
    budget = replace(
        budget,
        num_rounds=arguments.rounds or budget.num_rounds,
        load_s=arguments.load_s or budget.load_s,
        headline_s=arguments.headline_s or budget.headline_s,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    comparison = asyncio.run(compare(budget, _reserve_core()))
    text = markdown(comparison)
    (arguments.out / "report.md").write_text(text)
    (arguments.out / "plot.svg").write_text(plot(comparison))
    print(text)


if __name__ == "__main__":
    main()
