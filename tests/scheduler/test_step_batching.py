from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msf_scheduler.jobs import Priority
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import (
    MAX_WASTE,
    PATIENCE_S,
    ActiveWork,
    Candidate,
    StepBatch,
    StepLevelPolicy,
    active_shares,
)
from msf_scheduler.step_costs import StepCosts, Work

BUCKETS = (1, 2, 4)
MODELS = (("shapes", "1"), ("letters", "1"))
REASONS = {"overdue", "deadline", "full", "all", "best"}

times = st.floats(0, 10)
jobs = st.builds(
    ActiveWork,
    id=st.text("abc", min_size=1, max_size=2),
    arrived_at=times,
    total_s=st.floats(0, 10),
    remaining_s=st.floats(0, 10),
    priority=st.sampled_from(Priority),
    deadline=st.none() | st.floats(0, 30),
    share=st.floats(0.01, 4),
)
candidate_lists = st.lists(
    st.builds(
        Candidate,
        slot=st.integers(0, 1000),
        index=st.integers(0, 3),
        job=jobs,
        model=st.sampled_from(MODELS),
        stage=st.sampled_from(Stage),
        guided=st.booleans(),
        stepped_at=times,
    ),
    min_size=1,
    max_size=24,
    unique_by=lambda candidate: (candidate.model, candidate.slot),
)


def costs(seed: int = 0) -> dict[tuple[str, str], StepCosts]:
    """Return random costs that grow sublinearly with the bucket."""
    rng = random.Random(seed)
    costs_by_model = {model: StepCosts(BUCKETS) for model in MODELS}
    for measured in costs_by_model.values():
        for stage in Stage:
            for guided in (True, False):
                alone_s, growth = rng.uniform(0.001, 0.01), rng.uniform(0.3, 1)
                for bucket in BUCKETS:
                    measured.observe(stage, guided, bucket, alone_s * bucket**growth)
    return costs_by_model


def job(job_id: str = "a", arrived_at: float = 0.0, remaining_s: float = 1.0, **more: object) -> ActiveWork:
    return replace(ActiveWork(job_id, arrived_at, total_s=remaining_s, remaining_s=remaining_s), **more)  # type: ignore[arg-type]


def candidate(slot: int, of: ActiveWork | None = None, stage: Stage = Stage.BASE, guided: bool = False) -> Candidate:
    return Candidate(slot, 0, of or job(str(slot)), MODELS[0], stage, guided, stepped_at=0.0)


def choose(candidates: Sequence[Candidate], now: float = 0.0, pressure: float = 0.0, seed: int = 0) -> StepBatch:
    batch = StepLevelPolicy().choose(candidates, costs=costs(seed), pressure=pressure, now=now)
    assert batch is not None
    return batch


def members_of(batch: StepBatch, candidates: Sequence[Candidate]) -> list[Candidate]:
    return [member for member in candidates if member.model == batch.model and member.slot in batch.slots]


@given(candidate_lists, times, st.floats(0, 1), st.integers(0, 5))
def test_a_batch_has_one_group_and_fits_its_bucket(
    candidates: list[Candidate], now: float, pressure: float, seed: int
) -> None:
    batch = choose(candidates, now, pressure, seed)
    chosen = members_of(batch, candidates)
    assert len(chosen) == len(batch.slots) >= 1
    assert {member.group for member in chosen} == {(batch.model, batch.stage, batch.guided)}
    assert batch.bucket == min(bucket for bucket in BUCKETS if bucket >= len(chosen))
    assert batch.reason in REASONS


@given(candidate_lists, times, st.floats(0, 1), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    candidates: list[Candidate], now: float, pressure: float, order: random.Random
) -> None:
    distinct = list({(member.job.id, member.index): member for member in candidates}.values())
    by_id = {member.job.id: member.job for member in distinct}
    consistent = [replace(member, job=by_id[member.job.id]) for member in distinct]
    shuffled = order.sample(consistent, len(consistent))
    first, second = choose(consistent, now, pressure), choose(shuffled, now, pressure)
    assert first == second


@given(candidate_lists, st.integers(0, 5))
def test_full_slots_waste_nothing(candidates: list[Candidate], seed: int) -> None:
    fresh = [replace(member, stepped_at=0.0) for member in candidates]
    measured = costs(seed)
    batch = choose(fresh, pressure=1.0, seed=seed)

    def rate(members: int, group: tuple[tuple[str, str], Stage, bool], bucket: int) -> float:
        model, stage, guided = group
        return members * measured[model].share_s(stage, guided) / measured[model].mean_s(stage, guided, bucket)

    groups = {member.group for member in fresh}
    sizes = {group: sum(member.group == group for member in fresh) for group in groups}
    best = max(rate(min(sizes[group], bucket), group, bucket) for group in groups for bucket in BUCKETS)
    chosen = rate(len(batch.slots), (batch.model, batch.stage, batch.guided), batch.bucket)
    assert chosen >= (1 - MAX_WASTE) * best * 0.999


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_nobody_starves(seed: int, num_slots: int) -> None:
    """Whatever joins, a sample is stepped within PATIENCE_S and one step batch per other sample."""
    rng = random.Random(seed)
    measured, now, number = costs(seed), 0.0, num_slots
    slots = {slot: _newcomer(rng, slot, slot, now) for slot in range(num_slots)}
    batches_since_overdue = dict.fromkeys(slots, 0)
    for _ in range(300):
        batch = StepLevelPolicy().choose(list(slots.values()), costs=measured, pressure=rng.random(), now=now)
        assert batch is not None
        for slot, waiting in slots.items():
            if slot not in batch.slots and now - waiting.stepped_at > PATIENCE_S:
                batches_since_overdue[slot] += 1
                assert batches_since_overdue[slot] <= num_slots - 1
        now += rng.choice([0.001, 0.01, 0.3])
        for slot in batch.slots:
            batches_since_overdue[slot] = 0
            slots[slot] = replace(slots[slot], stepped_at=now)
            if rng.random() < 0.5:
                number += 1
                slots[slot] = _newcomer(rng, slot, number, now)


def _newcomer(rng: random.Random, slot: int, number: int, now: float) -> Candidate:
    work = ActiveWork(
        str(number),
        arrived_at=now,
        total_s=rng.uniform(0.001, 100),
        remaining_s=rng.uniform(0.001, 100),
        priority=rng.choice(list(Priority)),
        deadline=rng.choice([None, now + 0.1]),
    )
    return Candidate(slot, 0, work, rng.choice(MODELS), rng.choice(list(Stage)), rng.random() < 0.5, stepped_at=now)


@pytest.mark.parametrize(
    ("preferred", "other"),
    [
        (job("a", remaining_s=0.1), job("b", remaining_s=10.0)),
        (job("a", arrived_at=-50.0), job("b")),
        (job("a", priority=Priority.HIGH), job("b")),
        (job("a"), job("b", priority=Priority.LOW)),
        (job("a", deadline=1.2), job("b", deadline=100.0)),
        (job("a", deadline=1.2), job("b")),
        (job("a", share=1.0), job("b", share=0.1)),
    ],
    ids=["shorter", "older", "high", "not low", "nearer deadline", "deadline", "tenant with less"],
)
def test_of_two_jobs_that_cannot_share_a_batch_one_is_preferred(preferred: ActiveWork, other: ActiveWork) -> None:
    for guided in (True, False):
        candidates = [candidate(0, other, guided=guided), candidate(1, preferred, guided=not guided)]
        batch = StepLevelPolicy().choose(candidates, costs=_uniform(), pressure=0.5, now=0.0)
        assert batch is not None
        assert batch.slots == (1,)


def _uniform() -> dict[tuple[str, str], StepCosts]:
    uniform = {model: StepCosts(BUCKETS) for model in MODELS}
    for measured in uniform.values():
        for stage in Stage:
            for guided in (True, False):
                for bucket in BUCKETS:
                    measured.observe(stage, guided, bucket, 0.01)
    return uniform


def test_a_short_job_overtakes_long_ones() -> None:
    """A job of 4 steps arrives while more jobs of 200 steps run than fit a batch."""
    measured = _uniform()
    now = 0.0
    steps_left = dict.fromkeys(range(6), 200) | {6: 4}
    arrived = dict.fromkeys(range(6), 0.0) | {6: 0.5}
    stepped_at_by_slot = dict(arrived)
    ended: list[int] = []
    mixed = False
    while steps_left:
        active = [slot for slot in steps_left if arrived[slot] <= now]
        candidates = [
            Candidate(
                slot,
                0,
                ActiveWork(
                    str(slot),
                    arrived[slot],
                    total_s=0.01 * (4 if slot == 6 else 200),
                    remaining_s=0.01 * steps_left[slot],
                ),
                MODELS[0],
                Stage.BASE,
                False,
                stepped_at_by_slot[slot],
            )
            for slot in active
        ]
        batch = StepLevelPolicy().choose(candidates, costs=measured, pressure=0.5, now=now)
        assert batch is not None
        mixed |= len({steps_left[slot] for slot in batch.slots}) > 1
        now += 0.01
        for slot in batch.slots:
            stepped_at_by_slot[slot] = now
            steps_left[slot] -= 1
            if not steps_left[slot]:
                del steps_left[slot]
                ended.append(slot)
    assert ended[0] == 6
    assert mixed, "samples at different steps shared a batch"


def test_reasons() -> None:
    assert choose([candidate(slot) for slot in range(4)], pressure=1.0).reason == "full"
    assert choose([candidate(0)]).reason == "all"
    assert choose([candidate(0), candidate(1, stage=Stage.DECODE)]).reason == "best"
    assert choose([candidate(0)], now=PATIENCE_S + 0.1).reason == "overdue"
    assert choose([candidate(0, job(deadline=1.5))]).reason == "deadline"


def test_without_candidates_there_is_no_batch() -> None:
    assert StepLevelPolicy().choose([], costs=costs(), pressure=0.0, now=0.0) is None


def test_the_jobs_of_a_tenant_share_its_weight() -> None:
    shares = active_shares([("a", 1.0), ("b", 2.0), ("a", 1.0), ("a", 1.0), ("a", 1.0)])
    assert shares == {"a": 0.25, "b": 2.0}


def test_unmeasured_buckets_cost_what_the_nearest_measured_one_does() -> None:
    measured = StepCosts((1, 2, 4))
    assert measured.mean_s(Stage.BASE, True, 4) == 0.0
    measured.observe(Stage.BASE, True, 2, 0.02)
    assert measured.mean_s(Stage.BASE, True, 4) == pytest.approx(0.02)
    assert measured.mean_s(Stage.BASE, True, 1) == pytest.approx(0.02)
    measured.observe(Stage.BASE, True, 4, 0.024)
    assert measured.share_s(Stage.BASE, True) == pytest.approx(0.006)
    measured.observe(Stage.BASE, True, 4, 0.004)
    assert measured.share_s(Stage.BASE, True) == pytest.approx(measured.mean_s(Stage.BASE, True, 4) / 4)


def test_remaining_work_is_estimated_in_the_most_efficient_bucket() -> None:
    measured = StepCosts((1, 4))
    for stage, guided, alone_s in (
        (Stage.BASE, True, 0.02),
        (Stage.BASE, False, 0.01),
        (Stage.RESIDUAL, True, 0.04),
        (Stage.DECODE, False, 0.008),
    ):
        measured.observe(stage, guided, 1, alone_s)
        measured.observe(stage, guided, 4, 2 * alone_s)
    whole, base_only, unguided = Work(5, 2, True, True), Work(5, 2, True, False), Work(5, 0, False, False)
    measured.observe(Stage.RESIDUAL, False, 1, 0.03)
    assert measured.work_s(whole) == pytest.approx(5 * 0.01 + 2 * 0.02 + 0.004)
    assert measured.work_s(base_only) == pytest.approx(5 * 0.01 + 2 * 0.0075 + 0.004)
    assert measured.work_s(unguided) == pytest.approx(5 * 0.005 + 0.004)
    assert StepCosts((1, 4), measured).work_s(whole) == measured.work_s(whole)


def test_the_lower_bound_is_the_shortest_time_ever_measured() -> None:
    measured = StepCosts((1, 4))
    for seconds in (0.03, 0.01, 0.05):
        measured.observe(Stage.BASE, True, 1, seconds)
        measured.observe(Stage.RESIDUAL, True, 4, 2 * seconds)
        measured.observe(Stage.DECODE, False, 1, seconds / 10)
    assert measured.least_s(Work(5, 2, True, True)) == pytest.approx(5 * 0.01 + 2 * 0.02 + 0.001)
    assert 0.01 < measured.mean_s(Stage.BASE, True, 1) < 0.05
