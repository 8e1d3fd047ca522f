"""Triggers of an autoscaler, compared over a simulated day: latency against the worker hours that they pay for.

    python -m bench.service.autoscaling

The workers, the queue and the batching policy are those of the simulator; the autoscaler follows the documented
behaviour of KEDA and the HorizontalPodAutoscaler: a value scraped every 15 s, a decision every 15 s, a tolerance of
10 %, at most four more pods or twice as many per decision, and the highest decision of the last five minutes before
pods are removed. A day has a low and a peak, and at four times a sudden burst of three times the traffic.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tabulate import tabulate

from msf_cli.percentiles import percentile
from msf_cli.simulation.cluster import Hardware, SimulatedCluster
from msf_cli.simulation.queue import SimulatedJob
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts, StepPattern

HOUR_S = 3600.0
SYNC_S = 15.0
STABILIZATION_S = 300.0
RATE_WINDOW_S = 120.0
TOLERANCE = 0.1
MIN_WORKERS, MAX_WORKERS = 1, 20
PATTERN = StepPattern.of([2], [2], [1])  # few and long steps: they take the simulator the most time
NUM_SAMPLES = 4
BURSTS_AT = (3.0, 9.5, 14.0, 20.5)  # hours
BURST_S = 300.0
BURST_FACTOR = 3.0
SLOW_S = 10.0


def step_costs() -> StepCosts:
    """Return costs of a device on which a step of 16 rows takes six times as long as a step of one."""
    costs = StepCosts((1, 2, 4, 8, 16))
    for stage in Stage:
        for bucket in (1, 2, 4, 8, 16):
            costs.observe(stage, bucket, 0.2 + 0.1 * bucket)
    return costs


HARDWARE = Hardware(step_costs(), step_overhead_s=0.0005, job_overhead_s=0.01, transition_s=0.0004)
SAMPLE_S = HARDWARE.costs.work_s(PATTERN)
STEP_S = SAMPLE_S / len(PATTERN.stages)  # 1 / msf_steps_available_per_second of one worker


def workers_at(hour: float, peak: float) -> float:
    """Return the offered load in devices that it keeps busy."""
    load = peak * (0.1 + 0.9 * math.sin(math.pi * hour / 24) ** 2)
    is_burst = any(start <= hour < start + BURST_S / HOUR_S for start in BURSTS_AT)
    return load * (BURST_FACTOR if is_burst else 1.0)


def day(peak: float, hours: float, seed: int) -> list[SimulatedJob]:
    """Draw Poisson arrivals whose rate follows `workers_at`."""
    rng = random.Random(seed)
    highest_per_s = BURST_FACTOR * peak / (NUM_SAMPLES * SAMPLE_S)
    jobs, now = [], 0.0
    while (now := now + rng.expovariate(highest_per_s)) < hours * HOUR_S:
        hour = now / HOUR_S * 24 / hours
        if rng.random() < workers_at(hour, peak) / (BURST_FACTOR * peak):
            jobs.append(SimulatedJob(now, NUM_SAMPLES, PATTERN))
    return jobs


@dataclass(frozen=True)
class Reading:
    """Values of a scrape: age of the oldest job, device seconds of queued work, device seconds that arrive a second."""

    oldest_s: float
    queued_work_s: float
    demand: float


Trigger = Callable[[Reading], float]  # → workers wanted
TRIGGERS: dict[str, Trigger] = {
    "age of the oldest job, one worker per 2 s": lambda now: now.oldest_s / 2,
    "queued work, one worker per 2 s": lambda now: now.queued_work_s / 2,
    "queued work, one worker per 10 s": lambda now: now.queued_work_s / 10,
    "demand over 0.7": lambda now: now.demand / 0.7,
    "demand over 0.7, plus one worker per 10 s of queued work": lambda now: now.demand / 0.7 + now.queued_work_s / 10,
}


class Autoscaler:
    """HorizontalPodAutoscaler of a simulated cluster; `ready_s` passes before a new worker can claim."""

    def __init__(self, cluster: SimulatedCluster, arrivals: list[SimulatedJob], trigger: Trigger, ready_s: float):
        self._cluster, self._trigger, self._ready_s = cluster, trigger, ready_s
        self._arrivals = deque(job.arrived_at for job in arrivals)
        self._recent: deque[float] = deque()
        self._ends_at = arrivals[-1].arrived_at
        self._recent_targets: deque[tuple[float, int]] = deque()
        self._num_ready = self.num_workers = MIN_WORKERS
        self.worker_s = 0.0
        self.num_changes = 0
        cluster.at(0.0, self._sync)

    def _read(self) -> Reading:
        now, queue = self._cluster.now, self._cluster.queue
        while self._arrivals and self._arrivals[0] <= now:
            self._recent.append(self._arrivals.popleft())
        while self._recent and self._recent[0] < now - RATE_WINDOW_S:
            self._recent.popleft()
        oldest = queue.oldest_arrived_at()
        demand = len(self._recent) * NUM_SAMPLES * SAMPLE_S / RATE_WINDOW_S
        return Reading(now - oldest if oldest is not None else 0.0, queue.num_steps() * STEP_S, demand)

    def _sync(self) -> None:
        now = self._cluster.now
        ratio = self._trigger(self._read()) / self.num_workers
        target = self.num_workers if abs(ratio - 1) <= TOLERANCE else math.ceil(ratio * self.num_workers)
        target = min(max(target, MIN_WORKERS), MAX_WORKERS, max(2 * self.num_workers, self.num_workers + 4))
        self._recent_targets.append((now, target))
        while self._recent_targets[0][0] < now - STABILIZATION_S:
            self._recent_targets.popleft()
        if target < self.num_workers:
            target = min(max(number for _, number in self._recent_targets), self.num_workers)
        self._scale(target)
        if now < self._ends_at:
            self.worker_s += self.num_workers * SYNC_S
            self._cluster.at(now + SYNC_S, self._sync)

    def _scale(self, target: int) -> None:
        self.num_changes += target != self.num_workers
        for _ in range(target - self.num_workers):
            self._cluster.at(self._cluster.now + self._ready_s, self._start)
        self.num_workers = target
        while self._num_ready > self.num_workers:
            self._num_ready -= 1
            self._cluster.drain_worker()

    def _start(self) -> None:
        if self._num_ready < self.num_workers:  # else it was removed before it was ready
            self._num_ready += 1
            self._cluster.start_worker()


def rows(peak: float, hours: float, ready_s: float, seed: int) -> Iterator[list[str]]:
    jobs = day(peak, hours, seed)
    work_h = len(jobs) * NUM_SAMPLES * SAMPLE_S / HOUR_S
    for name, trigger in TRIGGERS.items():
        cluster = SimulatedCluster(HARDWARE, MIN_WORKERS)
        scaler = Autoscaler(cluster, jobs, trigger, ready_s)
        yield _row(name, cluster.run(jobs).latencies_s, scaler.worker_s / HOUR_S, work_h, str(scaler.num_changes))
    for num_workers in (math.ceil(peak / 0.7), math.ceil(BURST_FACTOR * peak / 0.7)):
        latencies_s = SimulatedCluster(HARDWARE, num_workers).run(jobs).latencies_s
        yield _row(f"none: {num_workers} workers all day", latencies_s, num_workers * hours, work_h, "0")


def _row(name: str, latencies_s: list[float], worker_h: float, work_h: float, num_changes: str) -> list[str]:
    p50_s, p99_s = (percentile(latencies_s, share) or 0.0 for share in (0.5, 0.99))
    slow = sum(latency_s > SLOW_S for latency_s in latencies_s) / len(latencies_s)
    return [
        name,
        f"{p50_s:.1f}",
        f"{p99_s:.1f}",
        f"{slow:.1%}",
        f"{worker_h:.0f}",
        f"{1 - work_h / worker_h:.0%}",
        num_changes,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=3.0, help="devices that the peak keeps busy (default: 3)")
    parser.add_argument("--hours", type=float, default=24.0, help="length of the day (default: 24)")
    parser.add_argument("--ready-s", type=float, default=45.0, help="seconds until a new worker is ready (default: 45)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the arrivals (default: 0)")
    arguments = parser.parse_args()
    head = ["trigger", "p50, s", "p99, s", f"over {SLOW_S:g} s", "worker hours", "idle", "changes"]
    table = list(rows(arguments.peak, arguments.hours, arguments.ready_s, arguments.seed))
    print(tabulate(table, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
