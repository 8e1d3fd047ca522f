"""Strict samples take only strict buckets; fast samples may share their batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_scheduler.step_batching import BatchingPolicy, StepBatch, StepLevelPolicy
from msf_scheduler.tenant_shares import ActiveWork
from tests.scheduler.policy_support import BUCKETS, Entry, active_set, costs, entries, job, times

strict_sets = st.lists(st.sampled_from(BUCKETS), unique=True).map(lambda buckets: (2, *buckets))


@given(entries, st.fixed_dictionaries(dict.fromkeys(TWO_STAGES, strict_sets)), times, st.booleans())
def test_a_batch_with_a_strict_member_takes_a_strict_bucket(
    jobs: list[Entry], strict: dict[Stage, tuple[int, ...]], now: float, is_request_level: bool
) -> None:
    jobs = [
        replace(entry, work=replace(entry.work, is_strict=number % 3 == 0), stepped_at=min(entry.stepped_at, now))
        for number, entry in enumerate(jobs)
    ]
    active = active_set(jobs, costs(strict=strict))
    policy: BatchingPolicy = RequestLevelPolicy(size=3, delay_s=0.0) if is_request_level else StepLevelPolicy()
    batch = policy.choose(active, now)
    assert isinstance(batch, StepBatch)
    assert 1 <= batch.num_rows <= batch.bucket
    if active.jobs.is_strict[active.samples.job[batch.samples]].any():
        assert batch.bucket in strict[batch.stage]


def test_a_strict_job_without_a_bucket_for_it_is_refused() -> None:
    active = active_set([], costs(strict=dict.fromkeys(TWO_STAGES, (1,))))
    strict = ActiveWork("a", 0.0, is_strict=True)
    active.add_job(0, strict, job(rows=1).pattern)
    with pytest.raises(ValueError, match=r"A strict base step takes 2 rows. Buckets: \(1,\)"):
        active.add_job(0, strict, job(rows=2).pattern)
    with pytest.raises(ValueError, match="takes 8 rows"):
        active.add_job(0, ActiveWork("b", 0.0), job(rows=8).pattern)


def test_strict_cost() -> None:
    assert costs(strict=dict.fromkeys(TWO_STAGES, BUCKETS)).strict_cost() == costs().strict_cost() == 0.0
    padded = costs(strict=dict.fromkeys(TWO_STAGES, (4,)))
    alone = max(padded.mean_s(stage, 4) / padded.mean_s(stage, 1) - 1 for stage in TWO_STAGES)
    assert padded.strict_cost() == pytest.approx(alone)
    split = costs(strict=dict.fromkeys(TWO_STAGES, (1,)))
    whole = max(4 * split.mean_s(stage, 1) / split.mean_s(stage, 4) - 1 for stage in TWO_STAGES)
    assert split.strict_cost() == pytest.approx(whole)
    assert costs(strict={**dict.fromkeys(TWO_STAGES, (1,)), Stage.BASE: ()}).strict_cost() is None
