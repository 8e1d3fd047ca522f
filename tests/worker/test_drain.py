"""Draining: running jobs are finished, waiting jobs are handed back."""

from __future__ import annotations

import logging

import pytest
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobState, Terms
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry
from msf_scheduler.stage import Stage
from tests.polling import eventually
from tests.worker.support import SPEC, Gate, RunningWorker, admit, running, with_plans, with_seconds

OTHER = Terms(tenant="other")  # a full worker claims its first job


async def state(worker: RunningWorker, job_id: str) -> tuple[JobState, int]:
    job = await worker.job(job_id)
    return job.state, job.attempt


async def test_running_jobs_are_finished_and_waiting_jobs_handed_back(
    redis: Redis, version: ModelVersion, plans: ModelPlans, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    queue, gate = JobQueue(redis), Gate()
    running_job, waiting = [await admit(queue, SPEC) for _ in range(2)]
    costly = with_seconds(with_plans(plans, Stage.BASE, gate), 10.0)
    async with running(redis, version, costly) as worker:
        await eventually(gate.reached.is_set)
        claimed = await worker.admit(SPEC, OTHER)
        await worker.has_attempted(claimed, 1)
        assert await state(worker, waiting) == (JobState.QUEUED, 0)
        worker.stop.set()
        await eventually(lambda: "draining: 2 jobs" in caplog.text)
        late = await worker.admit(SPEC)
        gate.open.set()
        await worker.ended
        assert await state(worker, running_job) == (JobState.SUCCEEDED, 1)
        assert len(await worker.images(running_job)) == 1
        for job_id in (claimed, waiting, late):
            assert (await state(worker, job_id))[0] is JobState.QUEUED
        assert (await queue.depth("tiny", "1")).num_jobs_running == 0
        assert await Registry(redis).workers() == []
        assert worker.num_jobs("succeeded") == 1

    async with running(redis, version, plans) as successor:
        for job_id in (claimed, waiting, late):
            job = await successor.end_of(job_id)
            assert (job.state, job.is_suspect) == (JobState.SUCCEEDED, False)


async def test_all_jobs_are_handed_back_if_there_is_no_time_to_drain(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    queue, gate = JobQueue(redis), Gate()
    job_ids = [await admit(queue, SPEC, terms) for terms in (None, OTHER)]
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), drain_timeout_s=0) as worker:
        await eventually(gate.reached.is_set)
        for job_id in job_ids:
            await worker.has_attempted(job_id, 1)
        worker.stop.set()
        await worker.ended
        for job_id in job_ids:
            assert (await state(worker, job_id))[0] is JobState.QUEUED
        assert (await queue.depth("tiny", "1")).num_jobs_running == 0
        assert await Registry(redis).workers() == []
        gate.open.set()


async def test_an_idle_worker_stops_at_once(redis: Redis, worker: RunningWorker) -> None:
    async def is_registered() -> bool:
        return len(await Registry(redis).workers()) == 1

    await eventually(is_registered)
    worker.stop.set()
    await worker.ended
    assert not await is_registered()
