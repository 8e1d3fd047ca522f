from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msf_serve.scheduler.policy import PATIENCE_S, Candidate, Stage, StepBatch, choose

BUCKETS = (1, 2, 4)

times = st.floats(0, 10)
candidate_lists = st.lists(
    st.builds(
        Candidate,
        slot=st.integers(0, 1000),
        stage=st.sampled_from(Stage),
        guided=st.booleans(),
        joined_at=times,
        num_steps_left=st.integers(1, 50),
    ),
    min_size=1,
    max_size=24,
    unique_by=lambda candidate: candidate.slot,
)


def candidate(slot: int, stage: Stage = Stage.BASE, joined_at: float = 0.0, guided: bool = False) -> Candidate:
    return Candidate(slot=slot, stage=stage, guided=guided, joined_at=joined_at, num_steps_left=5)


@given(candidate_lists, times)
def test_a_batch_is_of_one_kind_and_fits_the_largest_bucket(candidates: list[Candidate], now: float) -> None:
    batch = choose(candidates, buckets=BUCKETS, now=now)
    assert batch is not None
    assert 1 <= len(batch.slots) <= max(BUCKETS)
    assert len(set(batch.slots)) == len(batch.slots)
    chosen = [c for c in candidates if c.slot in batch.slots]
    assert len(chosen) == len(batch.slots)
    assert {(c.stage, c.guided) for c in chosen} == {(batch.stage, batch.guided)}
    assert batch.reason in {"full", "fullest", "oldest"}


@given(candidate_lists, times)
def test_nobody_who_fits_is_left_behind(candidates: list[Candidate], now: float) -> None:
    batch = choose(candidates, buckets=BUCKETS, now=now)
    assert batch is not None
    company = [c for c in candidates if (c.stage, c.guided) == (batch.stage, batch.guided)]
    assert len(batch.slots) == min(len(company), max(BUCKETS))


@given(candidate_lists, times, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    candidates: list[Candidate], now: float, order: random.Random
) -> None:
    shuffled = order.sample(candidates, len(candidates))
    assert choose(shuffled, buckets=BUCKETS, now=now) == choose(candidates, buckets=BUCKETS, now=now)


@given(candidate_lists)
def test_a_sample_past_patience_rides_now(candidates: list[Candidate]) -> None:
    oldest = replace(candidates[0], joined_at=-1.0)
    batch = choose([oldest, *candidates[1:]], buckets=BUCKETS, now=oldest.joined_at + PATIENCE_S + 0.01)
    assert batch is not None
    assert oldest.slot in batch.slots
    assert batch.reason == "oldest"


def test_a_lonely_sample_gets_through_a_stream_of_newcomers() -> None:
    lonely = candidate(0, Stage.DECODE, joined_at=0.0)
    waited = []
    for tick in range(40):
        now = tick * 0.1
        crowd = [candidate(slot, Stage.BASE, joined_at=now) for slot in range(1, 9)]
        batch = choose([lonely, *crowd], buckets=BUCKETS, now=now)
        assert batch is not None
        if lonely.slot in batch.slots:
            break
        waited.append(now)
    assert max(waited) <= PATIENCE_S


def test_a_full_group_goes_before_a_smaller_one() -> None:
    candidates = [candidate(0, Stage.DECODE), *(candidate(slot, Stage.BASE, joined_at=0.5) for slot in range(1, 6))]
    batch = choose(candidates, buckets=BUCKETS, now=0.6)
    assert batch == StepBatch(stage=Stage.BASE, guided=False, slots=(1, 2, 3, 4), reason="full")


def test_among_equals_the_later_stage_goes_first() -> None:
    candidates = [candidate(0, Stage.BASE), candidate(1, Stage.DECODE), candidate(2, Stage.RESIDUAL)]
    batch = choose(candidates, buckets=BUCKETS, now=0.0)
    assert batch == StepBatch(stage=Stage.DECODE, guided=False, slots=(1,), reason="fullest")


def test_guided_and_unguided_never_mix() -> None:
    candidates = [candidate(slot, guided=slot % 2 == 0) for slot in range(3)]
    batch = choose(candidates, buckets=BUCKETS, now=0.0)
    assert batch == StepBatch(stage=Stage.BASE, guided=True, slots=(0, 2), reason="fullest")


@pytest.mark.parametrize("now", [0.0, 100.0])
def test_nothing_to_do(now: float) -> None:
    assert choose([], buckets=BUCKETS, now=now) is None
