"""Failures: every job ends exactly once, and a failing job does not affect its neighbours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.jobs import JobSpec, JobState, Provenance
from msf_scheduler.queue import JobQueue
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import StepBatch, StepLevelPolicy
from msf_worker import job_finisher
from msf_worker.image_encoder import encode_image
from tests.polling import eventually
from tests.worker.faulty_plans import FAILING, NonFinitePlan, RaisingLaterPlan, RaisingPlan
from tests.worker.support import (
    SPEC,
    TIMEOUT_S,
    RunningWorker,
    admit,
    assert_same,
    generated_alone,
    pixels,
    running,
    with_plans,
)

LONG = SPEC.model_copy(update={"num_samples": 4000, "num_steps": 50})  # minutes of work


async def test_cancelling_a_job_frees_its_slots(worker: RunningWorker) -> None:
    neighbour = await worker.admit(SPEC.model_copy(update={"num_samples": 2, "num_steps": 30}))
    long = await worker.admit(LONG)
    await worker.has_attempted(long, 1)
    await worker.queue.cancel(long)
    after = await worker.admit(SPEC.model_copy(update={"num_samples": 8}))
    assert (await worker.end_of(neighbour)).state is JobState.SUCCEEDED
    assert (await worker.end_of(after)).state is JobState.SUCCEEDED
    assert (await worker.job(long)).state is JobState.CANCELLED
    assert await worker.images(long) == []
    await eventually(worker.is_idle)
    assert worker.count("msf_slots_in_use") == 0


async def test_a_result_that_comes_after_cancellation_is_dropped(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding, encode = threading.Event(), threading.Event()

    def encode_late(image: NDArray[np.uint8], spec: JobSpec, *, index: int, provenance: Provenance) -> bytes:
        encoding.set()
        assert encode.wait(TIMEOUT_S)
        return encode_image(image, spec, index=index, provenance=provenance)

    monkeypatch.setattr(job_finisher, "encode_image", encode_late)
    job_id = await worker.admit(SPEC)
    await eventually(encoding.is_set)
    await worker.queue.cancel(job_id)
    cancelled = await worker.job(job_id)
    encode.set()
    await eventually(lambda: worker.num_jobs("dropped") == 1)
    assert await worker.job(job_id) == cancelled
    assert await worker.images(job_id) == []
    assert worker.num_jobs("succeeded") == 0


@pytest.mark.parametrize("wrap", [RaisingPlan, RaisingLaterPlan])
@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])
async def test_a_plan_that_raises_fails_only_the_jobs_in_its_batch(
    stage: Stage, wrap: Callable[[Plan], Plan], redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    queue = JobQueue(redis)
    failing = await admit(queue, FAILING.model_copy(update={"num_samples": 2}))
    separate = await admit(queue, SPEC.model_copy(update={"version": "2"}))  # never in a batch with the other
    failing_plans = with_plans(plans, stage, wrap)
    async with running(redis, version, failing_plans, also=[replace(version, version="2")]) as worker:
        job = await worker.end_of(failing)
        assert job.state is JobState.FAILED
        assert job.error is not None
        assert job.error.code == "engine_error"
        assert "fire" not in job.error.message
        assert (await worker.end_of(separate)).state is JobState.SUCCEEDED
        after = await worker.admit(SPEC.model_copy(update={"num_samples": 8}))
        assert (await worker.end_of(after)).state is JobState.SUCCEEDED
        assert worker.is_idle()
        await eventually(lambda: (worker.num_jobs("failed"), worker.num_jobs("succeeded")) == (1, 1))


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])
async def test_a_sample_that_is_not_finite_fails_only_its_job(
    stage: Stage, redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    queue = JobQueue(redis)
    healthy = SPEC.model_copy(update={"num_samples": 3})
    before = await admit(queue, healthy)
    failing = await admit(queue, FAILING.model_copy(update={"num_samples": 6}))  # more than fit into the slots
    async with running(redis, version, with_plans(plans, stage, NonFinitePlan)) as worker:
        after = await worker.admit(healthy)
        job = await worker.end_of(failing)
        assert job.error is not None
        assert (job.state, job.error.code) == (JobState.FAILED, "non_finite")
        for job_id in (before, after):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
            for file, alone in zip(await worker.images(job_id), generated_alone(plans, healthy), strict=True):
                assert_same(pixels(file), alone)
        assert worker.is_idle()
        assert (await queue.depth("tiny", "1")).num_samples == 0


async def test_an_image_that_cannot_be_encoded_fails_only_its_job(
    worker: RunningWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(image: NDArray[np.uint8], spec: JobSpec, *, index: int, provenance: Provenance) -> bytes:
        if spec.label == FAILING.label:
            raise OSError("no encoder")
        return encode_image(image, spec, index=index, provenance=provenance)

    monkeypatch.setattr(job_finisher, "encode_image", encode)
    failing, healthy = await worker.admit(FAILING), await worker.admit(SPEC)
    job = await worker.end_of(failing)
    assert job.error is not None
    assert (job.state, job.error.code) == (JobState.FAILED, "engine_error")
    assert (await worker.end_of(healthy)).state is JobState.SUCCEEDED


async def test_an_error_of_the_devices_thread_ends_the_worker(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes its jobs then."""

    def choose(policy: StepLevelPolicy, active: ActiveSet, now: float) -> StepBatch | None:
        raise RuntimeError("the policy is broken")

    async with running(redis, version, plans) as worker:
        job_id = await worker.admit(SPEC)
        await worker.end_of(job_id)
        monkeypatch.setattr(StepLevelPolicy, "choose", choose)
        await worker.admit(SPEC)
        with pytest.raises(RuntimeError, match="broken"):
            await worker.ended
