"""The request-level policy: batches form from the oldest jobs and run to their end."""

from __future__ import annotations

from dataclasses import replace

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import Hold, StepBatch
from msf_scheduler.tenant_shares import ActiveWork
from tests.scheduler.policy_support import Entry, active_set, add, uniform_costs


def samples(job_id: str, count: int = 1, arrived_at: float = 0.0, model: int = 0, num_base_steps: int = 2) -> Entry:
    work = ActiveWork(job_id, arrived_at)
    return Entry(work, model, ((1,) * num_base_steps, (1,), (1,)), (0,) * count, stepped_at=arrived_at)


def active(*entries: Entry) -> ActiveSet:
    return active_set(entries, uniform_costs())


def members(active: ActiveSet, choice: StepBatch | Hold | None) -> list[str]:
    """Return the job and index of each member."""
    assert isinstance(choice, StepBatch)
    table = active.samples
    return [f"{active.work(int(table.job[sample])).id}{table.index[sample]}" for sample in choice.samples]


def run(policy: RequestLevelPolicy, active: ActiveSet) -> StepBatch:
    choice = policy.choose(active, 1.0)
    assert isinstance(choice, StepBatch)
    active.advance(choice.samples, 1.0)
    return choice


def test_a_batch_waits_to_fill_for_at_most_the_delay() -> None:
    policy = RequestLevelPolicy(size=4, delay_s=0.1)
    busy = active(samples("a"))
    assert policy.choose(busy, 0.0) == Hold(0.1)
    add(busy, samples("b", 3, arrived_at=0.05))
    assert members(busy, policy.choose(busy, 0.05)) == ["a0", "b0", "b1", "b2"]
    alone = active(samples("a"))
    assert members(alone, RequestLevelPolicy(size=4, delay_s=0.1).choose(alone, 0.1)) == ["a0"]


def test_no_sample_joins_a_running_batch_and_all_are_decoded_at_its_end() -> None:
    policy = RequestLevelPolicy(size=4, delay_s=0.0)
    busy = active(samples("a", num_base_steps=1), samples("b", num_base_steps=3))
    assert run(policy, busy).num_rows == 2
    add(busy, samples("c"))
    for _ in range(2):
        choice = policy.choose(busy, 1.0)
        assert members(busy, choice) == ["b0"]
        assert run(policy, busy).bucket == 2, "the sample that waits stays as padding"
    assert [run(policy, busy).stage for _ in range(2)] == [Stage.RESIDUAL, Stage.DECODE]
    assert members(busy, policy.choose(busy, 1.0)) == ["c0"]


def test_jobs_stay_whole_unless_one_exceeds_the_size() -> None:
    busy = active(samples("a"), samples("b", 3, arrived_at=0.1))
    assert members(busy, RequestLevelPolicy(size=3, delay_s=0.0).choose(busy, 1.0)) == ["a0"]
    large = active(samples("a", 5))
    assert members(large, RequestLevelPolicy(size=2, delay_s=0.0).choose(large, 1.0)) == ["a0", "a1", "a2", "a3"]


def test_a_batch_is_of_one_model() -> None:
    busy = active(samples("a"), samples("b", model=1, arrived_at=0.1), samples("c", arrived_at=0.2))
    assert members(busy, RequestLevelPolicy(size=3, delay_s=0.0).choose(busy, 1.0)) == ["a0"]


def test_guided_samples_fill_the_largest_bucket_two_rows_each() -> None:
    guided = replace(samples("a", 3), rows_by_stage=((2, 2), (2,), (1,)))
    busy = active(guided)
    assert members(busy, RequestLevelPolicy(size=3, delay_s=0.0).choose(busy, 1.0)) == ["a0", "a1"]


def test_without_active_samples_there_is_no_batch() -> None:
    assert RequestLevelPolicy(size=2, delay_s=0.0).choose(active(), 0.0) is None
