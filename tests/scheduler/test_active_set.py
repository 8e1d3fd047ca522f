"""The active set's counts against those of a plain model, and its queries."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.jobs import Priority
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts, StepPattern
from msf_scheduler.tenant_shares import ActiveWork
from tests.scheduler.policy_support import MODELS, active_set, costs, job, uniform_costs

PATTERNS = (
    StepPattern.of([2, 2, 1], [1, 2], [1]),
    StepPattern.of([1] * 4, [], [1]),
    StepPattern.of([2] * 200, [1], [1]),
)

Jobs = dict[int, tuple[int, StepPattern, list[int]]]  # model, pattern, steps done of each sample


def one_model(measured: StepCosts | None = None) -> ActiveSet:
    active = ActiveSet()
    active.add_model(MODELS[0], measured or costs())
    return active


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_counts_follow_every_join_step_and_departure(seed: int) -> None:
    """Drive a set at random, next to a list of the steps that remain of each sample."""
    rng = random.Random(seed)
    measured = [costs(0), costs(1)]
    active = ActiveSet()
    for key, model_costs in zip(MODELS, measured, strict=True):
        active.add_model(key, model_costs)
    jobs: Jobs = {}
    samples: dict[int, tuple[int, int]] = {}  # job, index
    for number in range(200):
        action = rng.choice(["add", "advance", "advance", "leave", "drop"])
        if action == "add":
            model, pattern, num_samples = rng.randrange(2), rng.choice(PATTERNS), rng.randint(1, 5)
            added = active.add_job(model, ActiveWork(str(number), 0.0, num_samples), pattern)
            jobs[added] = model, pattern, [0] * num_samples
            for index in range(rng.randint(0, num_samples)):
                samples[active.join(added, index, slot=index, now=0.0)] = added, index
        elif action == "drop" and jobs:
            dropped = rng.choice(list(jobs))
            active.drop_job(dropped)
            del jobs[dropped]
            samples = {sample: place for sample, place in samples.items() if place[0] != dropped}
        elif samples:
            group = active.samples.group[rng.choice(list(samples))]
            members = np.array([sample for sample in samples if active.samples.group[sample] == group])
            members = members[: rng.randint(1, len(members))]
            if action == "leave":
                active.leave(members)
            else:
                active.advance(members, now=1.0)
            for sample in members.tolist():
                owner, index = samples[sample]
                num_steps = len(jobs[owner][1].stages)
                jobs[owner][2][index] = num_steps if action == "leave" else jobs[owner][2][index] + 1
                if jobs[owner][2][index] == num_steps:
                    del samples[sample]
        assert active.num_active == len(samples) == sum(active.group_sizes)
        check_samples(active, jobs, samples)
        check_jobs(active, jobs, measured)


def check_samples(active: ActiveSet, jobs: Jobs, samples: dict[int, tuple[int, int]]) -> None:
    for sample, (owner, index) in samples.items():
        model, pattern, done = jobs[owner]
        assert active.samples.group[sample] == model * active.num_stages + pattern.stages[done[index]]
        assert active.samples.rows[sample] == pattern.rows[done[index]]


def check_jobs(active: ActiveSet, jobs: Jobs, measured: Sequence[StepCosts]) -> None:
    for held, (model, pattern, done) in jobs.items():
        rests = [StepPattern(pattern.stages[steps:], pattern.rows[steps:]) for steps in done]
        assert active.seconds()[0, held] == pytest.approx(sum(measured[model].work_s(rest) for rest in rests))
        assert active.progress(held)[1:] == (sum(done), len(done) * len(pattern.stages))
    for model in range(2):
        held_s = sum(active.seconds()[0, held] for held, entry in jobs.items() if entry[0] == model)
        assert active.held_s(model) == pytest.approx(held_s)


def test_costs_observed_later_count() -> None:
    measured = costs()
    active = one_model(measured)
    active.add_job(0, ActiveWork("a", 0.0), PATTERNS[0])
    before_s = active.held_s(0)
    for bucket in measured.buckets[Stage.BASE]:
        measured.observe(Stage.BASE, bucket, 1.0)
    assert active.held_s(0) == pytest.approx(measured.work_s(PATTERNS[0]))
    assert active.held_s(0) > before_s


def test_progress_names_the_stage_of_the_least_advanced_sample() -> None:
    active = one_model()
    number = active.add_job(0, ActiveWork("a", 0.0, num_samples=2), PATTERNS[0])
    first = active.join(number, 0, 0, 0.0)
    for _ in range(3):
        active.advance(np.array([first]), 0.0)
    assert active.progress(number) == (Stage.BASE, 3, 12), "one sample has not joined"
    second = active.join(number, 1, 1, 0.0)
    for _ in range(5):
        active.advance(np.array([second]), 0.0)
    assert active.progress(number) == (Stage.RESIDUAL, 8, 12)
    active.advance(np.array([second]), 0.0)
    active.leave([first])
    assert active.progress(number) == (Stage.DECODE, 12, 12)


def test_a_job_is_late_when_its_deadline_cannot_be_met_at_the_least_measured_times() -> None:
    active = active_set([], uniform_costs())  # 10 ms a step
    tight, loose, none = (
        active.add_job(0, ActiveWork(str(deadline), 0.0, num_samples=2, deadline=deadline), PATTERNS[0])
        for deadline in (0.1, 100.0, None)
    )
    assert active.late_jobs(0.03) == []
    assert active.late_jobs(0.05) == [tight]
    for held in (tight, loose, none):
        for index in range(2):
            active.join(held, index, index, 0.05)
    assert active.late_jobs(0.05) == [tight]
    active.advance(active.samples_of(tight), 0.05)
    assert active.late_jobs(0.05) == []
    assert active.late_jobs(200.0) == [tight, loose]


def test_a_job_whose_steps_are_all_launched_is_not_late() -> None:
    active = active_set([], uniform_costs())
    number = active.add_job(0, ActiveWork("a", 0.0, deadline=0.1), StepPattern.of([1], [], [1]))
    samples = np.array([active.join(number, 0, 0, 0.0)])
    active.advance(samples, 0.0)
    active.advance(samples, 0.0)
    assert active.late_jobs(10.0) == []
    assert active.num_active == 0


def test_a_one_stage_model_has_two_stages() -> None:
    active = ActiveSet()
    measured = StepCosts((1, 2), stages=(Stage.BASE, Stage.DECODE))
    number = active.add_job(active.add_model(MODELS[0], measured), ActiveWork("a", 0.0), StepPattern.of([1, 1], [1]))
    samples = np.array([active.join(number, 0, 0, 0.0)])
    for stage in (Stage.BASE, Stage.BASE, Stage.DECODE):
        assert active.progress(number).stage is stage
        active.advance(samples, 0.0)
    assert active.num_active == 0


def test_the_terms_of_all_jobs_are_held() -> None:
    active = one_model()
    for tenant in ("a", "a", "b"):
        active.add_job(0, ActiveWork(tenant, 0.0, tenant=tenant, priority=Priority.HIGH), PATTERNS[0])
    active.drop_job(0)
    assert active.held_terms() == {(Priority.HIGH, "a"), (Priority.HIGH, "b")}
    active.drop_job(1)
    assert active.held_terms() == {(Priority.HIGH, "b")}


def test_a_model_with_jobs_stays() -> None:
    active = active_set([job()])
    with pytest.raises(ValueError, match="Model 0 has jobs"):
        active.remove_model(0)
    active.drop_job(0)
    active.remove_model(0)
    assert active.add_model(("other", "1"), costs()) == 0


def test_stages_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Invalid stages \(1, 0\)"):
        one_model().add_job(0, ActiveWork("a", 0.0), StepPattern((1, 0), (1, 1)))
