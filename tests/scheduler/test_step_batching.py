"""The step-level policy: what a batch may be, and who goes first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.jobs import Priority
from msf_scheduler.step_batching import MAX_PATIENCE_S, MAX_WASTE, PATIENCE_S, REASONS, StepBatch, StepLevelPolicy
from msf_scheduler.step_costs import StepCosts
from msf_scheduler.tenant_shares import ActiveWork
from tests.scheduler.policy_support import (
    BUCKETS,
    MODELS,
    Entry,
    active_set,
    add,
    costs,
    entries,
    job,
    jobs_of,
    times,
    uniform_costs,
)


def choose(active: ActiveSet, now: float = 0.0) -> StepBatch:
    batch = StepLevelPolicy().choose(active, now)
    assert batch is not None
    return batch


@given(entries, times, st.integers(0, 5))
def test_a_batch_has_one_group_and_its_rows_fit_the_bucket(jobs: list[Entry], now: float, seed: int) -> None:
    active = active_set(jobs, costs(seed))
    batch = choose(active, now)
    samples = active.samples
    assert len(set(batch.samples.tolist())) == len(batch.samples) >= 1
    [group] = set(samples.group[batch.samples].tolist())
    model = active.model(group // active.num_stages)
    assert (batch.model, batch.stage) == (model.key, model.costs.stages[group % active.num_stages])
    assert batch.num_rows == samples.rows[batch.samples].sum() <= BUCKETS[-1]
    assert batch.bucket == min(bucket for bucket in BUCKETS if bucket >= batch.num_rows)
    assert batch.slots.tolist() == samples.slot[batch.samples].tolist()
    assert batch.reason in REASONS


@given(entries, times)
def test_equal_sets_give_equal_batches_and_choosing_changes_nothing(jobs: list[Entry], now: float) -> None:
    active = active_set(jobs)
    first, second, again = choose(active, now), choose(active, now), choose(active_set(jobs), now)
    for other in (second, again):
        assert (first.samples.tolist(), first.bucket, first.reason) == (
            other.samples.tolist(),
            other.bucket,
            other.reason,
        )


@given(entries, st.randoms(use_true_random=False), times)
def test_the_numbers_of_jobs_do_not_matter(jobs: list[Entry], order: random.Random, now: float) -> None:
    """Numbers break ties only: with unequal jobs of one sample any order of joining gives the same members."""
    unequal = [
        replace(
            entry, steps_done=entry.steps_done[:1], work=replace(entry.work, arrived_at=-0.1 * place, weight=place + 1)
        )
        for place, entry in enumerate(jobs)
    ]
    first, second = active_set(unequal), active_set(order.sample(unequal, len(unequal)))
    if now - min(entry.stepped_at for entry in unequal) <= PATIENCE_S:
        assert set(jobs_of(first, choose(first, now))) == set(jobs_of(second, choose(second, now)))


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=8, max_size=24))
def test_a_mix_of_equals_wastes_nothing(seed: int, places: list[tuple[int, int]]) -> None:
    """Samples of one job contend, wherever they are: the batch is within MAX_WASTE of the best rate."""
    measured = costs(seed)
    active = active_set([Entry(ActiveWork("a", 0.0), steps_done=tuple(steps for _, steps in places))], measured)
    batch = choose(active)

    def rate(num_rows: int, bucket: int, stage: int) -> float:
        return num_rows * measured.rates(measured.stages[stage])[BUCKETS.index(bucket)]

    best = max(
        rate(min(size, bucket), bucket, group % active.num_stages)
        for group, size in enumerate(active.group_sizes)
        if size
        for bucket in BUCKETS
    )
    chosen = rate(batch.num_rows, batch.bucket, measured.stages.index(batch.stage))
    assert chosen >= (1 - MAX_WASTE) * best * 0.999


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_nobody_starves(seed: int, num_jobs: int) -> None:
    """Whatever joins, a job is stepped within MAX_PATIENCE_S and one step batch per other job."""
    rng = random.Random(seed)
    active, now = active_set([], costs(seed)), 0.0
    jobs = {add(active, _newcomer(rng, str(number), now)) for number in range(num_jobs)}
    num_passed_over = dict.fromkeys(jobs, 0)  # since it was overdue
    for number in range(num_jobs, num_jobs + 300):
        batch = choose(active, now)
        members = set(active.samples.job[batch.samples].tolist())
        for waiting in jobs - members:
            if now - active.jobs.stepped_at[waiting] > MAX_PATIENCE_S:
                num_passed_over[waiting] += 1
                assert num_passed_over[waiting] <= num_jobs - 1
        active.advance(batch.samples, now)
        now += rng.choice([0.01, 0.3, 1.0])
        for member in members:
            num_passed_over[member] = 0
            if rng.random() < 0.5 or not len(active.samples_of(member)):
                active.drop_job(member)
                jobs.remove(member)
                jobs.add(add(active, _newcomer(rng, str(number), now)))
                num_passed_over = {entry: num_passed_over.get(entry, 0) for entry in jobs}


def _newcomer(rng: random.Random, job_id: str, now: float) -> Entry:
    work = ActiveWork(
        job_id, now, priority=rng.choice(list(Priority)), tenant=job_id, deadline=rng.choice([None, now + 0.1])
    )
    rows = (rng.choice([1, 2]),) * rng.choice([1, 10, 1000])
    return Entry(work, rng.randrange(2), (rows, (1,), (1,)), (0,) * rng.choice([1, 5]), now)


@pytest.mark.parametrize(
    ("preferred", "other"),
    [
        (job("a", num_base_steps=10), job("b", num_base_steps=1000)),
        (job("a", arrived_at=-50.0), job("b")),
        (job("a", priority=Priority.HIGH), job("b")),
        (job("a"), job("b", priority=Priority.LOW)),
        (job("a", deadline=0.2), job("b", deadline=100.0)),
        (job("a", deadline=0.2), job("b")),
        (job("a", tenant="a", weight=1.0), job("b", tenant="b", weight=0.1)),
    ],
    ids=["shorter", "older", "high", "not low", "nearer deadline", "deadline", "weightier tenant"],
)
def test_of_two_jobs_that_cannot_share_a_batch_one_is_preferred(preferred: Entry, other: Entry) -> None:
    for preferred_model in (0, 1):
        jobs = [replace(other, model=1 - preferred_model), replace(preferred, model=preferred_model)]
        active = active_set(jobs, uniform_costs())
        assert jobs_of(active, choose(active)) == ["a"]


def test_the_jobs_of_a_tenant_share_its_weight() -> None:
    greedy = [replace(job(str(number), tenant="greedy"), model=0) for number in range(12)]
    active = active_set([*greedy, replace(job("a", tenant="modest"), model=1)], uniform_costs())
    assert jobs_of(active, choose(active)) == ["a"]
    for number in range(1, 12):
        active.drop_job(number)
    active.raise_terms(0, Priority.NORMAL, "greedy", 1.1)
    assert jobs_of(active, choose(active)) == ["0"], "one job has all of its tenant's weight"


def test_raised_terms_count_from_the_next_choice() -> None:
    active = active_set([job("a"), replace(job("b", priority=Priority.LOW), model=1)], uniform_costs())
    assert jobs_of(active, choose(active)) == ["a"]
    active.raise_terms(1, Priority.HIGH, "other", 1.0)
    assert jobs_of(active, choose(active)) == ["b"]
    assert active.held_terms() == {(Priority.NORMAL, ""), (Priority.HIGH, "other")}


def test_a_short_job_overtakes_long_ones() -> None:
    """A job of 4 steps arrives while more jobs of 200 steps run than fit a batch."""
    active, now, ended = active_set([job(str(number), 200) for number in range(6)], uniform_costs()), 0.0, list[str]()
    mixed = False
    while active.num_active:
        if 0.5 <= now < 0.51:
            add(active, replace(job("short", 4, arrived_at=now), stepped_at=now))
        batch = choose(active, now)
        mixed |= len(set(active.samples.position[batch.samples].tolist())) > 1
        members = jobs_of(active, batch)
        num_active = active.num_active
        active.advance(batch.samples, now)
        ended += members if active.num_active < num_active else []
        now += 0.01
    assert ended[0] == "short"
    assert mixed, "samples at different steps shared a batch"


def test_guided_and_unguided_samples_share_a_batch() -> None:
    active = active_set([job("a", rows=1), job("b", rows=2)], uniform_costs())
    batch = choose(active)
    assert sorted(jobs_of(active, batch)) == ["a", "b"]
    assert (batch.num_rows, batch.bucket) == (3, 4)


def _serial_costs() -> StepCosts:
    """Return costs with which large batches are efficient and slow: 1 ms and 1 ms for each row."""
    measured = StepCosts((1, 2, 4, 8, 16, 32))
    for stage in measured.stages:
        for bucket in measured.buckets[stage]:
            measured.observe(stage, bucket, 0.001 + 0.001 * bucket)
    return measured


def _greedy_jobs(num_jobs: int, num_samples: int, num_steps: int, **terms: Any) -> list[Entry]:
    return [
        replace(job(f"greedy-{number}", num_steps, tenant="greedy", **terms), steps_done=(0,) * num_samples)
        for number in range(num_jobs)
    ]


@pytest.mark.parametrize(
    ("others", "terms"),
    [
        (_greedy_jobs(1, 64, 100, priority=Priority.LOW), {"priority": Priority.HIGH}),
        (_greedy_jobs(4, 64, 40), {}),
        (_greedy_jobs(60, 1, 16), {}),
        (_greedy_jobs(60, 1, 16, arrived_at=-20.0), {}),
    ],
    ids=["high beside low", "large jobs", "many jobs", "many jobs that queued long"],
)
def test_a_small_job_of_another_tenant_takes_at_most_three_times_its_time_alone(
    others: Sequence[Entry], terms: dict[str, Any]
) -> None:
    measured = _serial_costs()

    def duration_s(jobs: Sequence[Entry]) -> float:
        """Return how long a small job takes that joins after half a second."""
        active, now = active_set(jobs, measured), 0.0
        small: int | None = None
        while small is None or len(active.samples_of(small)):
            if now >= 0.5 and small is None:
                small = add(active, replace(job("small", 4, tenant="other", arrived_at=0.5, **terms), stepped_at=now))
            batch = StepLevelPolicy().choose(active, now)
            if batch is None:
                now = 0.5
                continue
            active.advance(batch.samples, now)
            now += measured.mean_s(batch.stage, batch.bucket)
            for number in np.flatnonzero(np.isinf(active.jobs.stepped_at[: active.jobs.end])).tolist():
                if number != small and active.jobs.weight[number]:
                    active.drop_job(number)
        return now - 0.5

    one_step_batch_s = measured.mean_s(measured.stages[0], measured.largest_bucket)
    assert duration_s(others) <= 3 * duration_s([]) + one_step_batch_s


def test_reasons() -> None:
    full = choose(active_set([replace(job(), steps_done=(0,) * 4)], uniform_costs()))
    assert full.reason == "full"
    assert choose(active_set([job()])).reason == "all"
    assert choose(active_set([job(), replace(job("b"), model=1)])).reason == "best"
    assert choose(active_set([job()]), now=PATIENCE_S + 0.1).reason == "overdue"
    assert choose(active_set([job(deadline=0.05)], uniform_costs())).reason == "deadline"


def test_without_active_samples_there_is_no_batch() -> None:
    active = active_set([])
    assert StepLevelPolicy().choose(active, 0.0) is None
    active.add_job(0, ActiveWork("a", 0.0), job().pattern)
    assert StepLevelPolicy().choose(active, 0.0) is None
    assert [model.key for model in active.models if model] == list(MODELS)
