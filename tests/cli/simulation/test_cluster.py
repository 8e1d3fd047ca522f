"""The simulation against closed forms and the invariants of a service."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest

from msf_cli.simulation.capacity import Demand, estimate_workers, simulate_workers
from msf_cli.simulation.cluster import Hardware, SimulatedCluster, SimulationResult
from msf_cli.simulation.queue import SimulatedJob
from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.jobs import Priority
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_scheduler.step_costs import StepCosts, StepPattern

STEP_S = 0.01
PATTERN = StepPattern.of([1] * 8, [1], [1])
LONG = StepPattern.of([1] * 40, [1] * 10, [1])
ALONE_S = 10 * STEP_S  # nine steps and the decode


def costs(buckets: tuple[int, ...] = (1, 2, 4, 8), growth: float = 0.3) -> StepCosts:
    """`growth` 0: a step costs the same whatever the bucket; 1: batching gains nothing."""
    measured = StepCosts(buckets)
    for stage in TWO_STAGES:
        for bucket in buckets:
            measured.observe(stage, bucket, STEP_S * bucket**growth)
    return measured


HARDWARE = Hardware(costs())


def poisson(rate_per_s: float, count: int, seed: int = 0, num_samples: int = 1) -> list[SimulatedJob]:
    return Demand(rate_per_s * num_samples, PATTERN, num_samples).jobs(count, seed)


def simulate(hardware: Hardware, jobs: list[SimulatedJob], num_workers: int = 1) -> SimulationResult:
    return SimulatedCluster(hardware, num_workers).run(jobs)


def test_one_job_alone_takes_its_steps_and_decode() -> None:
    result = simulate(HARDWARE, [SimulatedJob(1.0, 1, PATTERN)])
    assert result.latencies_s == [pytest.approx(ALONE_S)]


def test_overheads_and_transitions_add_up() -> None:
    slow = replace(HARDWARE, step_overhead_s=0.001, job_overhead_s=0.5, transition_s=0.01)
    result = simulate(slow, [SimulatedJob(0.0, 1, PATTERN)])
    # admit, claim, finish; ten step batches
    assert result.latencies_s == [pytest.approx(ALONE_S + 10 * 0.001 + 0.5 + 3 * 0.01)]


def test_batches_of_one_match_the_pollaczek_khinchine_mean_wait() -> None:
    """M/D/1: mean wait = load / (2 (1 - load)) of the service time."""
    one_by_one = Hardware(costs(buckets=(1,)))
    pattern, alone_s = StepPattern.of([1], [], [1]), 2 * STEP_S
    load = 0.7
    result = simulate(one_by_one, Demand(load / alone_s, pattern).jobs(20_000, seed=0))
    expected = load / (2 * (1 - load)) * alone_s
    assert mean(result.latencies_s) - alone_s == pytest.approx(expected, rel=0.1)
    assert result.utilisation == pytest.approx(load, rel=0.05)


def test_the_same_jobs_give_the_same_result() -> None:
    jobs = poisson(20, 300)
    assert simulate(HARDWARE, jobs, 2) == simulate(HARDWARE, jobs, 2)


def test_every_job_finishes() -> None:
    rng = random.Random(3)
    jobs = [SimulatedJob(0.01 * number, rng.choice((1, 4, 50)), PATTERN) for number in range(100)]
    result = simulate(HARDWARE, jobs, 3)
    assert len(result.latencies_s) == 100
    assert min(result.latencies_s) >= ALONE_S * 0.999


def test_twice_the_workers_are_half_as_busy() -> None:
    serial = Hardware(costs(growth=1.0))
    one, two = (simulate(serial, poisson(5, 2000), number) for number in (1, 2))
    assert one.utilisation == pytest.approx(2 * two.utilisation, rel=0.05)


def test_redis_limits_throughput_with_many_workers() -> None:
    jobs = poisson(1000, 3000)
    result = simulate(replace(HARDWARE, transition_s=0.001), jobs, 200)
    assert result.redis_utilisation > 0.95
    assert result.images_per_s < 500


def test_step_level_is_faster_than_request_level_for_a_mix() -> None:
    rng = random.Random(1)
    jobs = [replace(job, pattern=StepPattern.of([1] * rng.choice((3, 60)), [1], [1])) for job in poisson(12, 1500)]
    step = SimulatedCluster(HARDWARE, 1).run(jobs)
    request = SimulatedCluster(HARDWARE, 1, lambda: RequestLevelPolicy(size=8, delay_s=0.02)).run(jobs)
    assert mean(step.latencies_s) < 0.7 * mean(request.latencies_s)


@pytest.mark.parametrize(
    ("others", "priority"),
    [
        ([SimulatedJob(0.0, 64, LONG, Priority.LOW, "greedy")], Priority.HIGH),
        ([SimulatedJob(0.0, 64, LONG, tenant="greedy")] * 4, Priority.NORMAL),
        ([SimulatedJob(0.0, 1, PATTERN, tenant="greedy")] * 500, Priority.NORMAL),
    ],
    ids=["high beside low", "large jobs", "many jobs"],
)
def test_nobody_makes_a_small_job_of_another_tenant_wait(others: list[SimulatedJob], priority: Priority) -> None:
    small = SimulatedJob(0.5, 1, PATTERN, priority, "other")
    latency_s = simulate(HARDWARE, [*others, small]).latencies_s[-1]
    one_step_batch_s = HARDWARE.costs.mean_s(Stage.BASE, 8)
    assert latency_s <= 3 * ALONE_S + one_step_batch_s


def test_the_estimate_is_the_fewest_workers_that_meet_the_target() -> None:
    demand = Demand(images_per_s=200, pattern=PATTERN)
    estimate = estimate_workers(demand, 3 * ALONE_S, HARDWARE, num_jobs=1500)
    assert estimate.num_workers is not None
    jobs = demand.jobs(1500, seed=0)
    assert simulate_workers(jobs, estimate.num_workers, HARDWARE).p99_s <= 3 * ALONE_S
    assert estimate.num_workers == 1 or simulate_workers(jobs, estimate.num_workers - 1, HARDWARE).p99_s > 3 * ALONE_S
    assert all(one.num_workers < other.num_workers for one, other in pairwise(estimate.latencies))


def test_an_unreachable_target_has_a_reason() -> None:
    assert "alone takes 0.1 s" in estimate_workers(Demand(1, PATTERN), 0.05, HARDWARE).reason
    busy = replace(HARDWARE, transition_s=0.001)
    assert "transitions/s" in estimate_workers(Demand(10_000, PATTERN), 10.0, busy).reason


def test_a_worker_that_is_started_later_shares_the_work() -> None:
    jobs = [SimulatedJob(0.0, 8, LONG)] * 6
    alone_s = SimulatedCluster(HARDWARE, 1).run(jobs).duration_s
    cluster = SimulatedCluster(HARDWARE, 1)
    cluster.at(1.0, cluster.start_worker)
    assert 0.5 * alone_s < cluster.run(jobs).duration_s < 0.8 * alone_s


def test_a_worker_that_drains_finishes_its_jobs_and_claims_no_more() -> None:
    jobs = [*([SimulatedJob(0.0, 8, LONG)] * 2), *([SimulatedJob(20.0, 8, LONG)] * 4)]
    cluster = SimulatedCluster(HARDWARE, 2)
    cluster.at(0.1, cluster.drain_worker)
    latencies_s = cluster.run(jobs).latencies_s
    assert max(latencies_s[:2]) <= max(SimulatedCluster(HARDWARE, 2).run(jobs[:2]).latencies_s)
    assert max(latencies_s[2:]) == pytest.approx(max(SimulatedCluster(HARDWARE, 1).run(jobs[2:]).latencies_s))
