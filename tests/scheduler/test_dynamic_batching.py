from __future__ import annotations

from dataclasses import replace

import pytest

from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import ActiveWork, Candidate, Hold, StepBatch
from msf_scheduler.step_costs import StepCosts

MODEL, OTHER = ("shapes", "1"), ("letters", "1")
COSTS = {MODEL: StepCosts((1, 2, 4)), OTHER: StepCosts((1, 2, 4))}


def samples(
    job_id: str,
    *slots: int,
    arrived_at: float = 0.0,
    stage: Stage = Stage.BASE,
    model: tuple[str, str] = MODEL,
    guided: bool = False,
) -> list[Candidate]:
    work = ActiveWork(job_id, arrived_at, total_s=1.0, remaining_s=1.0)
    return [Candidate(slot, index, work, model, stage, guided, arrived_at) for index, slot in enumerate(slots)]


def choose(
    policy: RequestLevelPolicy, candidates: list[Candidate], now: float = 0.0, pressure: float = 0.5
) -> StepBatch | Hold | None:
    return policy.choose(candidates, costs=COSTS, pressure=pressure, now=now)


def slots(choice: StepBatch | Hold | None) -> tuple[int, ...]:
    assert isinstance(choice, StepBatch)
    return choice.slots


def test_a_batch_waits_to_fill_for_at_most_the_delay() -> None:
    policy = RequestLevelPolicy(size=4, delay_s=0.1)
    assert choose(policy, samples("a", 0)) == Hold(0.1)
    assert slots(choose(policy, samples("a", 0) + samples("b", 1, 2, 3, arrived_at=0.05), 0.05)) == (0, 1, 2, 3)
    assert slots(choose(RequestLevelPolicy(size=4, delay_s=0.1), samples("a", 0), 0.1)) == (0,)


def test_a_batch_does_not_wait_when_all_slots_are_taken() -> None:
    assert slots(choose(RequestLevelPolicy(size=4, delay_s=0.1), samples("a", 0), pressure=1.0)) == (0,)


def test_no_sample_joins_a_running_batch_and_all_are_decoded_at_its_end() -> None:
    policy = RequestLevelPolicy(size=2, delay_s=0.0)
    assert slots(choose(policy, samples("a", 0) + samples("b", 1))) == (0, 1)
    late = samples("c", 2, arrived_at=1.0)
    with_room = RequestLevelPolicy(size=4, delay_s=0.0)
    choose(with_room, samples("a", 0))
    assert slots(choose(with_room, samples("a", 0) + late, 1.0)) == (0,)
    done_early = samples("a", 0, stage=Stage.DECODE) + samples("b", 1) + late
    choice = choose(policy, done_early, 1.0)
    assert isinstance(choice, StepBatch)
    assert (choice.slots, choice.bucket) == ((1,), 2), "the finished row stays as padding"
    at_the_end = samples("a", 0, stage=Stage.DECODE) + samples("b", 1, stage=Stage.DECODE) + late
    assert slots(choose(policy, at_the_end, 2.0)) == (0, 1)
    assert slots(choose(policy, late, 3.0)) == (2,)


def test_jobs_stay_whole_unless_one_exceeds_the_size() -> None:
    jobs = samples("a", 0) + samples("b", 1, 2, 3, arrived_at=0.1)
    assert slots(choose(RequestLevelPolicy(size=3, delay_s=0.0), jobs, 1.0)) == (0,)
    large = RequestLevelPolicy(size=2, delay_s=0.0)
    assert slots(choose(large, samples("a", 0, 1, 2, 3, 4))) == (0, 1, 2, 3)
    rest = samples("a", 0, 1, 2, 3, stage=Stage.RESIDUAL) + samples("a", 4)
    rest[4] = replace(rest[4], index=4)
    choice = choose(large, rest)
    assert isinstance(choice, StepBatch)
    assert (choice.slots, choice.bucket) == ((4,), 4), "the bucket stays the same"


@pytest.mark.parametrize(
    "other",
    [samples("b", 1, arrived_at=0.1, model=OTHER), samples("b", 1, arrived_at=0.1, guided=True)],
    ids=["model", "guided"],
)
def test_a_batch_has_one_model_and_one_kind_of_guidance(other: list[Candidate]) -> None:
    choice = choose(RequestLevelPolicy(size=4, delay_s=0.0), samples("a", 0) + other, 1.0)
    assert isinstance(choice, StepBatch)
    assert (choice.model, choice.guided, choice.slots) == (MODEL, False, (0,))


def test_without_candidates_there_is_no_batch() -> None:
    assert choose(RequestLevelPolicy(size=4, delay_s=0.0), []) is None
