"""The device's thread, without Redis: what other threads ask of it, failures, and slots that change hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import pytest

from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.claims import Claim
from msf_scheduler.jobs import JobRecord, JobSpec, JobState, Priority, Terms
from msf_scheduler.queue import new_job_id
from msf_scheduler.stage import TWO_STAGES, Stage
from msf_scheduler.step_batching import BatchingPolicy, StepBatch, first_fitting, make_batch
from msf_worker.active_job import ActiveJob
from msf_worker.device_loop import DeviceLoop
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.outcome import Outcome
from tests.polling import until
from tests.worker.faulty_plans import FAILING, NonFinitePlan, RaisingLaterPlan, RaisingPlan
from tests.worker.support import SPEC, TIMEOUT_S, Gate, assert_same, generated_alone, with_plans


@dataclass
class OneJobPolicy:
    """Steps one job at a time, of the highest priority, in turn; keeps the ids of the jobs that were stepped."""

    job_ids: list[str] = field(default_factory=list)

    def choose(self, active: ActiveSet, now: float) -> StepBatch | None:
        """Return samples of the job whose turn it is that are in its least advanced stage."""
        if not active.num_active:
            return None
        samples, jobs = active.samples, active.jobs
        job = min(
            {job for job in samples.job[: samples.end].tolist() if job >= 0},
            key=lambda job: (active.work(job).priority.rank, jobs.stepped_at[job]),
        )
        self.job_ids.append(active.work(job).id)
        members = active.samples_of(job)
        groups = samples.group[members]
        return make_batch(active, first_fitting(active, members[groups == groups.min()]))


class AllPolicy:
    """Steps all samples of the least advanced stage."""

    def choose(self, active: ActiveSet, now: float) -> StepBatch | None:
        """Return as many of them as fit."""
        if not active.num_active:
            return None
        groups = np.where(active.samples.job >= 0, active.samples.group, np.iinfo(np.int16).max)
        return make_batch(active, first_fitting(active, np.flatnonzero(groups == groups.min())))


@dataclass
class Device:
    """A device loop, and what it has handed over."""

    loop: DeviceLoop
    runners: Sequence[ModelRunner]
    outcomes: list[Outcome]

    def add(
        self, spec: JobSpec = SPEC, terms: Terms | None = None, *, work_s: float = 0.0, model: int = 0
    ) -> ActiveJob:
        """Add a job as a claim brings it."""
        record = JobRecord(
            id=new_job_id(), spec=spec, terms=terms or Terms(), state=JobState.RUNNING, admitted_at=0.0, claimed_at=0.0
        )
        [(job, _)] = self.runners[model].make_jobs([Claim(record, "worker")])
        self.loop.add(job, work_s)
        return job

    def completed(self) -> list[ActiveJob]:
        return [job for outcome in self.outcomes for job in outcome.completed]

    def failed(self) -> list[ActiveJob]:
        return [job for outcome in self.outcomes for job, _ in outcome.failed]


@contextmanager
def device_of(
    versions: Sequence[ModelVersion], plans: ModelPlans, capacity: int = 8, policy: BatchingPolicy | None = None
) -> Iterator[Device]:
    """Run a device loop of models that share their plans; the thread must end without an error."""
    outcomes: list[Outcome] = []
    loop = DeviceLoop(policy or OneJobPolicy(), WorkerMetrics(), outcomes.append, low_water_s=0.0)
    runners = [ModelRunner(version, Executor(plans, capacity)) for version in versions]
    for runner in runners:
        loop.add_model(runner)
    loop.start()
    try:
        yield Device(loop, runners, outcomes)
    finally:
        loop.stop()
    loop.ended.result(TIMEOUT_S)


def assert_images(job: ActiveJob, plans: ModelPlans) -> None:
    """Check that a job has the images that each of its samples gives alone."""
    for index, alone in enumerate(generated_alone(plans, job.spec)):
        assert_same(job.images[index], alone)


def test_the_thread_outlives_calls_that_nobody_waits_for_any_more(version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    with device_of([version], with_plans(plans, Stage.BASE, gate)) as device:
        device.add()
        assert gate.reached.wait(TIMEOUT_S)
        assert device.loop.call(lambda: "never").cancel()
        gate.open.set()
        assert device.loop.call(lambda: "later").result(TIMEOUT_S) == "later"
        assert not device.loop.ended.cancel()


@pytest.mark.parametrize("wrap", [RaisingPlan, RaisingLaterPlan])
def test_a_batch_that_fails_ends_the_jobs_of_its_samples(
    wrap: Callable[[Plan], Plan], version: ModelVersion, plans: ModelPlans
) -> None:
    with device_of([version], with_plans(plans, Stage.RESIDUAL, wrap), policy=AllPolicy()) as device:
        together = device.loop.call(lambda: [device.add(FAILING), device.add(FAILING)]).result(TIMEOUT_S)
        until(lambda: device.failed() == together)
        assert device.loop.num_active(device.runners[0].key) == 0
        assert device.runners[0].executor.num_free_slots == 8


@pytest.mark.parametrize("wrap", [RaisingPlan, RaisingLaterPlan])
def test_a_device_is_not_busy_after_a_batch_that_failed(
    wrap: Callable[[Plan], Plan], version: ModelVersion, plans: ModelPlans
) -> None:
    """The watchdog would end an idle worker."""
    with device_of([version], with_plans(plans, Stage.BASE, wrap)) as device:
        job = device.add(FAILING)
        until(lambda: device.failed() == [job])
        until(lambda: device.loop.busy_since is None)


def test_slots_of_samples_that_are_not_finite_are_freed_once(version: ModelVersion, plans: ModelPlans) -> None:
    """Two samples of a job fail in one batch, while another job's batch is under way."""
    gate = Gate()
    faulty = with_plans(plans, Stage.BASE, lambda plan: gate(NonFinitePlan(plan)))
    with device_of([version], faulty, capacity=4) as device:
        device.add(SPEC.model_copy(update={"num_steps": 50}))
        assert gate.reached.wait(TIMEOUT_S)
        failing = device.add(FAILING.model_copy(update={"num_samples": 2}))
        device.add(SPEC.model_copy(update={"num_steps": 50}))
        after = device.add(SPEC.model_copy(update={"num_samples": 3}))
        gate.open.set()
        until(lambda: device.failed() == [failing])
        until(lambda: after in device.completed())
    assert_images(after, plans)


def test_a_sample_that_is_not_finite_fails_only_its_job_when_previews_are_due(
    version: ModelVersion, plans: ModelPlans
) -> None:
    with device_of([version], with_plans(plans, Stage.RESIDUAL, NonFinitePlan)) as device:
        failing = device.add(FAILING.model_copy(update={"num_steps": 20}), Terms(num_previews=3))
        until(lambda: device.failed() == [failing])
        after = device.add(terms=Terms(num_previews=3))
        until(lambda: after in device.completed())


def test_work_counts_as_held_from_claim_to_end(version: ModelVersion, plans: ModelPlans) -> None:
    """Otherwise a worker claims the whole queue while a step batch is computed."""
    gate = Gate()
    with device_of([version], with_plans(plans, Stage.BASE, gate)) as device:
        job = device.add(work_s=600.0)
        assert gate.reached.wait(TIMEOUT_S)
        assert device.loop.held_s == 600.0
        gate.open.set()
        until(lambda: device.completed() == [job])
        assert device.loop.held_s == 0.0


def test_a_job_that_no_bucket_can_hold_fails_alone(version: ModelVersion, plans: ModelPlans) -> None:
    without_strict = replace(plans, strict=dict.fromkeys(TWO_STAGES, ()))
    with device_of([version], without_strict) as device:
        strict = device.add(SPEC.model_copy(update={"reproducibility": "strict"}))
        until(lambda: device.failed() == [strict])
        fast = device.add()
        until(lambda: device.completed() == [fast])
        assert device.loop.held_s == 0.0


def test_a_job_of_many_samples_leaves_slots_for_other_jobs(version: ModelVersion, plans: ModelPlans) -> None:
    gate, policy = Gate(), OneJobPolicy()
    with device_of([version], with_plans(plans, Stage.BASE, gate), capacity=8, policy=policy) as device:
        large = device.add(SPEC.model_copy(update={"num_samples": 16, "num_steps": 50}))
        assert gate.reached.wait(TIMEOUT_S)
        assert device.loop.num_active(device.runners[0].key) == 6
        small = device.add()
        gate.open.set()
        until(lambda: device.completed() == [small, large])
    assert small.id in policy.job_ids[:3]


def test_nothing_is_handed_over_after_a_stop(version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    with device_of([version], with_plans(plans, Stage.DECODE, gate)) as device:
        device.add()
        assert gate.reached.wait(TIMEOUT_S)
        device.loop.stop()
        gate.open.set()
        device.loop.ended.result(TIMEOUT_S)
        assert not any(device.outcomes)


@pytest.mark.parametrize("stage", TWO_STAGES)
def test_a_job_dropped_while_its_batch_is_under_way_leaves_its_slot_clean(
    stage: Stage, version: ModelVersion, plans: ModelPlans
) -> None:
    gate = Gate()
    with device_of([version], with_plans(plans, stage, gate), capacity=2) as device:
        dropped = device.add(SPEC.model_copy(update={"num_samples": 2, "seed": 1}))
        assert gate.reached.wait(TIMEOUT_S)
        device.loop.drop(dropped.id)
        successor = device.add(SPEC.model_copy(update={"num_samples": 4, "guidance_scale": 1.0}))
        gate.open.set()
        until(lambda: device.completed() == [successor])
    assert_images(successor, plans)


def test_a_sample_waits_between_steps_while_a_more_important_one_runs(version: ModelVersion, plans: ModelPlans) -> None:
    gate, policy = Gate(), OneJobPolicy()
    low, high = Terms(priority=Priority.LOW), Terms(priority=Priority.HIGH)
    with device_of([version], with_plans(plans, Stage.RESIDUAL, gate), policy=policy) as device:
        waiting = device.add(SPEC.model_copy(update={"num_samples": 3, "num_steps": 20}), low)
        assert gate.reached.wait(TIMEOUT_S)
        important = device.add(SPEC.model_copy(update={"seed": 8}), high)
        gate.open.set()
        until(lambda: device.completed() == [important, waiting])
    changes = [job_id for job_id, _ in groupby(policy.job_ids)]
    assert changes == [waiting.id, important.id, waiting.id]
    for job in (waiting, important):
        assert_images(job, plans)


def test_a_job_is_served_by_the_terms_to_which_it_is_raised(version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    low = Terms(priority=Priority.LOW)
    with device_of([version], with_plans(plans, Stage.BASE, gate)) as device:
        first, raised = [device.add(SPEC.model_copy(update={"num_steps": 20}), low) for _ in range(2)]
        assert gate.reached.wait(TIMEOUT_S)
        device.loop.raise_terms(raised.id, Terms(priority=Priority.HIGH, tenant="other"))
        device.loop.raise_terms("unknown", Terms(priority=Priority.HIGH))
        gate.open.set()
        until(lambda: device.completed() == [raised, first])


def test_two_models_take_turns_on_one_device(version: ModelVersion, plans: ModelPlans) -> None:
    """They share their plans, as versions with the same weights do."""
    policy = OneJobPolicy()
    with device_of([version, replace(version, version="2")], plans, policy=policy) as device:
        specs = [SPEC.model_copy(update={"version": "1", "num_samples": 3}), SPEC.model_copy(update={"version": "2"})]
        jobs = [device.add(spec, model=number) for number, spec in enumerate(specs)]
        until(lambda: len(device.completed()) == 2)
        changes = [job_id for job_id, _ in groupby(policy.job_ids)]
        assert changes[:4] == [jobs[0].id, jobs[1].id] * 2
        for job in jobs:
            assert_images(job, plans)
        device.loop.remove_model(("tiny", "1"))
        late = device.add(specs[0])
        until(lambda: device.failed() == [late])


def test_previews_of_samples_that_are_being_stepped_do_not_change_their_images(
    version: ModelVersion, plans: ModelPlans
) -> None:
    with device_of([version], plans) as device:
        job = device.add(SPEC.model_copy(update={"num_samples": 2, "num_steps": 20}), Terms(num_previews=4))
        until(lambda: device.completed() == [job])
    previews = [preview for outcome in device.outcomes for _, preview, _ in outcome.previews]
    assert [(preview.number, preview.index) for preview in previews] == [(n, i) for n in range(4) for i in range(2)]
    assert_images(job, plans)
