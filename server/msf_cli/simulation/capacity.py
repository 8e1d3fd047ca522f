"""Estimate the workers a load needs, by simulating ever more of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msf_cli.percentiles import percentile
from msf_cli.simulation.cluster import Hardware, SimulatedCluster, SimulationResult
from msf_cli.simulation.queue import SimulatedJob
from msf_scheduler.step_costs import StepPattern

MAX_WORKERS = 4096
NUM_JOBS = 3000  # leaves 30 jobs above the p99


@dataclass(frozen=True)
class Demand:
    """Poisson arrivals of equal jobs."""

    images_per_s: float
    pattern: StepPattern
    num_samples: int = 1

    def jobs(self, num_jobs: int, seed: int) -> list[SimulatedJob]:
        rng = random.Random(seed)
        rate_per_s = self.images_per_s / self.num_samples
        now = 0.0
        jobs = []
        for _ in range(num_jobs):
            now += rng.expovariate(rate_per_s)
            jobs.append(SimulatedJob(now, self.num_samples, self.pattern))
        return jobs


@dataclass(frozen=True)
class ClusterLatency:
    """Latency of a demand on `num_workers` workers."""

    num_workers: int
    p50_s: float
    p99_s: float
    result: SimulationResult


@dataclass(frozen=True)
class CapacityEstimate:
    """`num_workers` is None when no number of workers is enough; `reason` then says why."""

    latencies: Sequence[ClusterLatency]
    num_workers: int | None
    reason: str = ""


def estimate_workers(
    demand: Demand, p99_s: float, hardware: Hardware, *, seed: int = 0, num_jobs: int = NUM_JOBS
) -> CapacityEstimate:
    """Return the fewest workers whose p99 is at most `p99_s`."""
    alone_s = SimulatedCluster(hardware, 1).run([SimulatedJob(0.0, demand.num_samples, demand.pattern)]).latencies_s[0]
    if alone_s > p99_s:
        return CapacityEstimate([], None, f"one job alone takes {alone_s:.3g} s")
    transitions_per_s = 3 * demand.images_per_s / demand.num_samples  # admit, claim, finish
    if transitions_per_s * hardware.transition_s >= 1:
        limit = f"one Redis makes {1 / hardware.transition_s:.0f} transitions/s"
        return CapacityEstimate([], None, f"{limit}, this load takes {transitions_per_s:.0f}")
    jobs = demand.jobs(num_jobs, seed)
    latencies: dict[int, ClusterLatency] = {}

    def is_enough(num_workers: int) -> bool:
        if num_workers not in latencies:
            latencies[num_workers] = simulate_workers(jobs, num_workers, hardware)
        return latencies[num_workers].p99_s <= p99_s

    lower_bound = max(math.ceil(demand.images_per_s * hardware.costs.work_s(demand.pattern)), 1)
    num_workers = _smallest(is_enough, lower_bound)
    reason = "" if num_workers else f"{MAX_WORKERS} workers are not enough"
    return CapacityEstimate([latencies[number] for number in sorted(latencies)], num_workers, reason)


def simulate_workers(jobs: Sequence[SimulatedJob], num_workers: int, hardware: Hardware) -> ClusterLatency:
    """Simulate at least one job on `num_workers` workers."""
    result = SimulatedCluster(hardware, num_workers).run(jobs)
    p50_s, p99_s = (percentile(result.latencies_s, share) or 0.0 for share in (0.5, 0.99))
    return ClusterLatency(num_workers, p50_s, p99_s, result)


def _smallest(is_enough: Callable[[int], bool], lowest: int) -> int | None:
    """Search the smallest number, `lowest` or more, for which the monotone `is_enough` holds."""
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
