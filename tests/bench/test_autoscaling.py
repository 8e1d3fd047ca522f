"""The autoscaler of the simulated day."""

from __future__ import annotations

import math

from bench.service.autoscaling import HARDWARE, NUM_SAMPLES, PATTERN, SAMPLE_S, Autoscaler, Reading
from msf_cli.simulation.cluster import SimulatedCluster
from msf_cli.simulation.queue import SimulatedJob

DEMAND = 2.0  # devices that the jobs keep busy


def steady_jobs(duration_s: float) -> list[SimulatedJob]:
    interval_s = NUM_SAMPLES * SAMPLE_S / DEMAND
    return [SimulatedJob(number * interval_s, NUM_SAMPLES, PATTERN) for number in range(int(duration_s / interval_s))]


def test_steady_traffic_gets_the_workers_that_its_demand_asks_for() -> None:
    jobs = steady_jobs(400)
    cluster = SimulatedCluster(HARDWARE, 1)
    scaler = Autoscaler(cluster, jobs, lambda now: now.demand / 0.7, ready_s=30)
    latencies_s = cluster.run(jobs).latencies_s
    assert scaler.num_workers == math.ceil(DEMAND / 0.7)
    assert max(latencies_s[-20:]) < 5 < max(latencies_s)  # once there are enough


def test_workers_are_removed_after_five_minutes_without_need() -> None:
    jobs = steady_jobs(700)
    targets = iter([4.0, *[1.0] * 1000])
    numbers: list[int] = []
    cluster = SimulatedCluster(HARDWARE, 1)

    def trigger(_: Reading) -> float:
        numbers.append(scaler.num_workers)
        return next(targets)

    scaler = Autoscaler(cluster, jobs, trigger, ready_s=30)
    cluster.run(jobs)
    assert numbers[1:21] == [4] * 20
    assert numbers[23:] == [1] * len(numbers[23:])
