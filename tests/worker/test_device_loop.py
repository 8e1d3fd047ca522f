"""The device's thread, without Redis: what other threads ask of it, failures, and slots that change hands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Array, Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.jobs import JobRecord, JobSpec, JobState, Terms
from msf_scheduler.leases import Claim
from msf_scheduler.queue import new_job_id
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import BatchingPolicy, StepBatch, make_batch
from msf_worker.active_job import ActiveJob
from msf_worker.device_loop import DeviceLoop, Outcome
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from tests.polling import until
from tests.worker.support import SPEC, TIMEOUT_S, Gate, WrappedPlan, assert_same, generated_alone, with_plans

FAILING = SPEC.model_copy(update={"label": 2})


@dataclass
class OneJobPolicy:
    """Steps one job at a time, of the highest priority, in turn; keeps the ids of the jobs that were stepped."""

    job_ids: list[str] = field(default_factory=list)

    def choose(self, active: ActiveSet, now: float) -> StepBatch | None:
        """Return all samples of the job whose turn it is that are in its least advanced stage."""
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
        return make_batch(active, members[groups == groups.min()])


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
        job, _ = self.runners[model].make_job(Claim(record, "worker"))
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
    loop = DeviceLoop(policy or OneJobPolicy(), WorkerMetrics(capacity), outcomes.append, low_water_s=0.0)
    runners = [ModelRunner(version, Executor(plans, capacity)) for version in versions]
    for runner in runners:
        loop.add_model(runner)
    loop.start()
    yield Device(loop, runners, outcomes)
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


class NonFinitePlan(WrappedPlan):
    """Computes NaN for samples of the failing label."""

    def start(self, num_rows: int) -> None:
        self.rows = np.equal(self.inputs(num_rows)[2], FAILING.label)
        super().start(num_rows)

    def wait(self) -> Array:
        velocity = super().wait().copy()
        velocity[self.rows] = np.nan
        return velocity


class RaisingPlan(WrappedPlan):
    """Fails when a batch is started."""

    def start(self, num_rows: int) -> None:
        raise RuntimeError("the device is on fire")


class RaisingLaterPlan(WrappedPlan):
    """Fails while a batch is computed."""

    def wait(self) -> Array:
        raise RuntimeError("the device is on fire")


@pytest.mark.parametrize("wrap", [RaisingPlan, RaisingLaterPlan])
def test_a_device_is_not_busy_after_a_batch_that_failed(
    wrap: Callable[[Plan], Plan], version: ModelVersion, plans: ModelPlans
) -> None:
    """The watchdog would end an idle worker."""
    with device_of([version], with_plans(plans, Stage.BASE, wrap)) as device:
        job = device.add()
        until(lambda: device.failed() == [job])
        until(lambda: device.loop.busy_since is None)


def test_slots_of_samples_that_are_not_finite_are_freed_once(version: ModelVersion, plans: ModelPlans) -> None:
    """Two samples of a job fail in one batch, while one of another job is under way; all slots are taken then."""
    with device_of([version], with_plans(plans, Stage.BASE, NonFinitePlan), capacity=4) as device:
        failing = device.add(FAILING.model_copy(update={"num_samples": 2}))
        device.add(SPEC.model_copy(update={"num_steps": 50}))
        until(lambda: device.failed() == [failing])
        after = device.add(SPEC.model_copy(update={"num_samples": 3}))
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
