"""How many workers a load needs, by simulating ever more of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msf_cli.simulation.cluster import Cluster, Hardware, Outcome, Request
from msf_scheduler.step_costs import Work

MAX_WORKERS = 4096
NUM_JOBS = 3000  # enough for a p99 that 30 jobs lie above


@dataclass(frozen=True)
class Load:
    """Poisson arrivals of one-class jobs."""

    images_per_s: float
    work: Work
    num_samples: int = 1

    def requests(self, num_jobs: int, seed: int) -> list[Request]:
        dice = random.Random(seed)
        rate_per_s = self.images_per_s / self.num_samples
        now = 0.0
        found = []
        for _ in range(num_jobs):
            now += dice.expovariate(rate_per_s)
            found.append(Request(now, self.num_samples, self.work))
        return found


@dataclass(frozen=True)
class Trial:
    num_workers: int
    p50_s: float
    p99_s: float
    outcome: Outcome


@dataclass(frozen=True)
class Plan:
    """`answer` is None when no number of workers will do, and `reason` says why."""

    trials: Sequence[Trial]
    answer: int | None
    reason: str


def plan(load: Load, p99_s: float, hardware: Hardware, *, seed: int = 0, num_jobs: int = NUM_JOBS) -> Plan:
    """The fewest workers whose p99 is at most `p99_s`."""
    alone_s = Cluster(hardware, 1).run([Request(0.0, load.num_samples, load.work)]).latencies_s[0]
    if alone_s > p99_s:
        return Plan([], None, f"one job alone takes {alone_s:.3g} s")
    transitions_per_s = 3 * load.images_per_s / load.num_samples
    if transitions_per_s * hardware.transition_s >= 1:
        return Plan([], None, f"one Redis makes {1 / hardware.transition_s:.0f} transitions/s, and this takes more")
    requests = load.requests(num_jobs, seed)
    trials: dict[int, Trial] = {}

    def is_enough(num_workers: int) -> bool:
        if num_workers not in trials:
            trials[num_workers] = attempt(requests, num_workers, hardware)
        return trials[num_workers].p99_s <= p99_s

    fewest = max(math.ceil(load.images_per_s * hardware.costs.work_s(load.work)), 1)
    answer = _fewest(is_enough, fewest)
    ordered = [trials[number] for number in sorted(trials)]
    reason = "" if answer else f"not even {MAX_WORKERS} workers will do"
    return Plan(ordered, answer, reason)


def attempt(requests: Sequence[Request], num_workers: int, hardware: Hardware) -> Trial:
    outcome = Cluster(hardware, num_workers).run(requests)
    ordered = sorted(outcome.latencies_s)
    p50_s, p99_s = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
    return Trial(num_workers, p50_s, p99_s, outcome)


def _fewest(is_enough: Callable[[int], bool], lowest: int) -> int | None:
    """The smallest number from `lowest` on that is enough, as more always are."""
    step, too_few, enough = 1, lowest - 1, lowest
    while not is_enough(enough):
        too_few, enough = enough, enough + step
        step *= 2
        if enough > MAX_WORKERS:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough
