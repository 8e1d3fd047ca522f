"""Strict samples take only strict buckets; fast samples may share their batches."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import Candidate, StepBatch, StepLevelPolicy
from msf_scheduler.step_costs import KINDS, Kind, StepCosts
from tests.scheduler.test_step_batching import BUCKETS, MODELS, candidate_lists, times

strict_sets = st.lists(st.sampled_from(BUCKETS), min_size=1, unique=True).map(tuple)


def costs(strict: dict[Kind, tuple[int, ...]], seed: int = 0) -> StepCosts:
    rng = random.Random(seed)
    measured = StepCosts(BUCKETS, strict=strict)
    for stage, guided in KINDS:
        for bucket in BUCKETS:
            measured.observe(stage, guided, bucket, rng.uniform(0.01, 0.02) * bucket**0.7)
    return measured


@given(candidate_lists, st.fixed_dictionaries(dict.fromkeys(KINDS, strict_sets)), times, st.floats(0, 1), st.booleans())
def test_a_batch_with_a_strict_member_takes_a_strict_bucket(
    candidates: list[Candidate], strict: dict[Kind, tuple[int, ...]], now: float, pressure: float, request_level: bool
) -> None:
    candidates = [
        replace(candidate, strict=candidate.slot % 3 == 0, guided=candidate.guided and candidate.stage != "decode")
        for candidate in candidates
    ]
    policy = RequestLevelPolicy(size=3, delay_s=0.0) if request_level else StepLevelPolicy()
    pressure = 1.0 if request_level else pressure  # below that it may wait to fill
    batch = policy.choose(candidates, costs=dict.fromkeys(MODELS, costs(strict)), pressure=pressure, now=now)
    assert isinstance(batch, StepBatch)
    members = [c for c in candidates if c.model == batch.model and c.slot in batch.slots]
    assert 1 <= len(members) <= batch.bucket
    if any(member.strict for member in members):
        assert batch.bucket in strict[batch.stage, batch.guided]


def test_strict_cost() -> None:
    free = costs(dict.fromkeys(KINDS, BUCKETS))
    assert free.strict_cost() == 0.0
    padded = costs(dict.fromkeys(KINDS, (4,)))
    alone = max(padded.mean_s(*kind, 4) / padded.mean_s(*kind, 1) - 1 for kind in KINDS)
    assert padded.strict_cost() == pytest.approx(alone)
    split = costs(dict.fromkeys(KINDS, (1,)))
    whole = max(4 * split.mean_s(*kind, 1) / split.mean_s(*kind, 4) - 1 for kind in KINDS)
    assert split.strict_cost() == pytest.approx(whole)
    without_guided_residual = [kind for kind in KINDS if kind != (Stage.RESIDUAL, True)]
    assert costs(dict.fromkeys(without_guided_residual, BUCKETS)).strict_cost() == 0.0
    some: dict[Kind, tuple[int, ...]] = dict.fromkeys(KINDS, (1,)) | {KINDS[0]: ()}
    assert costs(some).strict_cost() is None
