"""Claims of a worker: about a second of work, and always the first job of a newcomer."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobSpec, JobState, Priority, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.stage import Stage
from msf_scheduler.tunables import HELD_S
from tests.polling import eventually
from tests.worker.support import SPEC, Gate, admit, running, with_plans, with_seconds

LARGE = SPEC.model_copy(update={"num_samples": 64, "num_steps": 50})
SMALL = SPEC.model_copy(update={"num_steps": 4})


async def test_a_small_urgent_job_ends_while_a_large_one_is_under_way(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    async with running(redis, version, plans, slots=64) as worker:
        large = await worker.admit(LARGE, Terms(tenant="a", priority=Priority.LOW))
        await worker.has_attempted(large, 1)
        small = await worker.admit(SMALL, Terms(tenant="b", priority=Priority.HIGH))
        assert (await worker.end_of(small)).state is JobState.SUCCEEDED
        assert (await worker.job(large)).state is JobState.RUNNING


async def test_small_jobs_one_after_another_end_before_the_large_ones_of_another_tenant(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    async with running(redis, version, plans, slots=64) as worker:
        large = [await worker.admit(LARGE, Terms(tenant="a")) for _ in range(4)]
        await worker.has_attempted(large[0], 1)
        for _ in range(3):
            small = await worker.admit(SMALL, Terms(tenant="b"))
            assert (await worker.end_of(small)).state is JobState.SUCCEEDED
        assert not any([(await worker.job(job_id)).state.is_terminal for job_id in large])


async def test_a_full_worker_claims_the_first_job_of_a_newcomer_and_no_other(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    queue, gate = JobQueue(redis), Gate()
    flood = [await admit(queue, SPEC, Terms(tenant="flood")) for _ in range(20)]
    async with running(redis, version, with_seconds(with_plans(plans, Stage.BASE, gate), 10.0)) as worker:
        await eventually(gate.reached.is_set)
        newcomer = await worker.admit(SPEC, Terms(tenant="newcomer"))
        await worker.has_attempted(newcomer, 1)
        assert (await queue.depth("tiny", "1")).num_jobs_running == 2
        gate.open.set()
        first = await worker.end_of(newcomer)
        ends = [(await worker.end_of(job_id)).finished_at for job_id in flood]
        assert first.finished_at is not None
        assert sum(end is not None and end > first.finished_at for end in ends) > len(flood) / 2


async def test_a_full_worker_claims_again_before_its_work_ends(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Leases, "wait_for_work", never)
    queue, base, residual = JobQueue(redis), Gate(), Gate()
    first, second = [await admit(queue, SPEC) for _ in range(2)]
    gated = with_plans(with_plans(plans, Stage.BASE, base), Stage.RESIDUAL, residual)
    async with running(redis, version, with_seconds(gated, 1.15 * HELD_S)) as worker:
        await eventually(base.reached.is_set)
        assert (await worker.job(second)).state is JobState.QUEUED
        base.open.set()
        await worker.has_attempted(second, 1)
        assert (await worker.job(first)).state is JobState.RUNNING
        residual.open.set()
        for job_id in (first, second):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED


async def test_work_that_an_urgent_job_shares_goes_first(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    raised: list[str] = []
    async with running(redis, version, with_plans(plans, Stage.BASE, gate)) as worker:
        device = worker.worker.device
        raise_terms = device.raise_terms

        def record(job_id: str, terms: Terms) -> None:
            raise_terms(job_id, terms)
            raised.append(job_id)

        async def ask(spec: JobSpec, terms: Terms) -> str:
            job_id, fingerprint = new_job_id(), worker.runner.fingerprint
            await worker.queue.admit(spec, terms, job_id=job_id, reply_to=None, fingerprint=fingerprint)
            return job_id

        monkeypatch.setattr(device, "raise_terms", record)
        long, shared = (SPEC.model_copy(update={"num_samples": 4, "num_steps": 50, "seed": seed}) for seed in range(2))
        low = Terms(tenant="a", priority=Priority.LOW)
        first, leader = await ask(long, low), await ask(shared, low)
        for job_id in (first, leader):
            await worker.has_attempted(job_id, 1)
        follower = await ask(shared, Terms(tenant="b", priority=Priority.HIGH))
        await eventually(lambda: raised == [leader])
        gate.open.set()
        ends = [(await worker.end_of(job_id)).finished_at for job_id in (follower, first)]
        assert ends[0] is not None
        assert ends[1] is not None
        assert ends[0] < ends[1]
