"""The simulation against closed forms, and against what a service must do."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest

from msf_cli.simulation.cluster import Cluster, Hardware, Outcome, Request
from msf_cli.simulation.planning import Load, attempt, plan
from msf_scheduler.dynamic_batching import RequestLevel
from msf_scheduler.step_costs import Stage, StepCosts, Work

STEP_S = 0.01
WORK = Work(8, 1, True, True)
ALONE_S = 10 * STEP_S  # nine steps and the decode


def costs(buckets: tuple[int, ...] = (1, 2, 4, 8), growth: float = 0.3) -> StepCosts:
    """`growth` 0: a step costs the same whatever the bucket; 1: batching gains nothing."""
    measured = StepCosts(buckets)
    for stage in Stage:
        for guided in (True, False):
            for bucket in buckets:
                measured.observe(stage, guided, bucket, STEP_S * bucket**growth)
    return measured


HARDWARE = Hardware(costs(), num_slots=16)


def poisson(rate_per_s: float, count: int, seed: int = 0, num_samples: int = 1) -> list[Request]:
    return Load(rate_per_s * num_samples, WORK, num_samples).requests(count, seed)


def simulate(hardware: Hardware, requests: list[Request], num_workers: int = 1) -> Outcome:
    return Cluster(hardware, num_workers).run(requests)


def test_one_job_alone_takes_its_steps_and_no_more() -> None:
    outcome = simulate(HARDWARE, [Request(1.0, 1, WORK)])
    assert outcome.latencies_s == [pytest.approx(ALONE_S)]


def test_overheads_and_transitions_add_up() -> None:
    slow = replace(HARDWARE, step_overhead_s=0.001, job_overhead_s=0.5, transition_s=0.01)
    outcome = simulate(slow, [Request(0.0, 1, WORK)])
    # admit, claim, finish; ten step batches
    assert outcome.latencies_s == [pytest.approx(ALONE_S + 10 * 0.001 + 0.5 + 3 * 0.01)]


def test_one_at_a_time_is_the_queue_that_pollaczek_and_khinchine_solved() -> None:
    """M/D/1: mean wait = load / (2 (1 - load)) of the service time."""
    one_by_one = Hardware(costs(buckets=(1,)), num_slots=1)
    load = 0.7
    outcome = simulate(one_by_one, poisson(load / ALONE_S, 20_000))
    expected = load / (2 * (1 - load)) * ALONE_S
    assert mean(outcome.latencies_s) - ALONE_S == pytest.approx(expected, rel=0.1)
    assert outcome.utilisation == pytest.approx(load, rel=0.05)


def test_the_same_requests_give_the_same_outcome() -> None:
    requests = poisson(20, 300)
    assert simulate(HARDWARE, requests, 2) == simulate(HARDWARE, requests, 2)


def test_every_job_ends_even_with_more_samples_than_slots() -> None:
    dice = random.Random(3)
    requests = [Request(0.01 * number, dice.choice((1, 4, 50)), WORK) for number in range(100)]
    outcome = simulate(HARDWARE, requests, 3)
    assert len(outcome.latencies_s) == 100
    assert min(outcome.latencies_s) >= ALONE_S * 0.999


def test_twice_the_workers_are_half_as_busy() -> None:
    serial = Hardware(costs(growth=1.0), num_slots=16)
    one, two = (simulate(serial, poisson(5, 2000), number) for number in (1, 2))
    assert one.utilisation == pytest.approx(2 * two.utilisation, rel=0.05)


def test_redis_is_the_bound_when_workers_are_many() -> None:
    requests = poisson(1000, 3000)
    outcome = simulate(replace(HARDWARE, transition_s=0.001), requests, 200)
    assert outcome.redis_utilisation > 0.95
    assert outcome.images_per_s < 500


def test_step_level_is_faster_than_request_level_for_a_mix() -> None:
    dice = random.Random(1)
    requests = [replace(each, work=Work(dice.choice((3, 60)), 1, True, True)) for each in poisson(12, 1500)]
    step = Cluster(HARDWARE, 1).run(requests)
    request = Cluster(HARDWARE, 1, lambda: RequestLevel(size=8, delay_s=0.02)).run(requests)
    assert mean(step.latencies_s) < 0.7 * mean(request.latencies_s)


def test_a_plan_is_the_fewest_workers_that_meet_the_target() -> None:
    load = Load(images_per_s=200, work=WORK)
    found = plan(load, 3 * ALONE_S, HARDWARE, num_jobs=1500)
    assert found.answer is not None
    requests = load.requests(1500, seed=0)
    assert attempt(requests, found.answer, HARDWARE).p99_s <= 3 * ALONE_S
    assert found.answer == 1 or attempt(requests, found.answer - 1, HARDWARE).p99_s > 3 * ALONE_S
    assert all(one.num_workers < other.num_workers for one, other in pairwise(found.trials))


def test_what_cannot_be_met_is_said() -> None:
    assert "alone takes 0.1 s" in plan(Load(1, WORK), 0.05, HARDWARE).reason
    busy = replace(HARDWARE, transition_s=0.001)
    assert "transitions/s" in plan(Load(10_000, WORK), 10.0, busy).reason
