"""Redis goes away, or gives a job to another: it still ends once, and nothing is left in a slot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler import keys
from msf_scheduler.connection import call, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobSpec, JobState, Provenance
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Claim, Claimed, Leases, Swept
from msf_scheduler.queue import JobQueue
from msf_scheduler.stage import Stage
from msf_worker import job_finisher as finishing
from msf_worker.image_encoder import encode_image
from tests.worker.support import SPEC, TIMEOUT_S, Gate, admit, running, until, with_plans

QUEUE = QueueKeys.of("tiny", "1")
PAIR = SPEC.model_copy(update={"num_samples": 2})


@pytest.mark.slow
async def test_a_job_that_ends_while_redis_is_away_is_stored_when_it_is_back(
    tmp_path: Path, version: ModelVersion, plans: ModelPlans, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    with EmbeddedValkey(tmp_path) as valkey:
        async with (
            connect(valkey.url) as redis,
            running(redis, version, with_plans(plans, Stage.DECODE, gate)) as worker,
        ):
            job_id = await worker.admit(PAIR)
            await until(gate.reached.is_set)
            await asyncio.to_thread(valkey.stop)
            gate.open.set()
            await until(lambda: "waiting for Redis" in caplog.text)
            await asyncio.to_thread(valkey.start)
            job = await worker.end_of(job_id)
            assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
            assert len(await worker.images(job_id)) == 2
            after = await worker.admit(SPEC)
            assert (await worker.end_of(after)).state is JobState.SUCCEEDED
            await until(lambda: worker.num_jobs("succeeded") == 2)
            assert worker.num_jobs("dropped") == 0


async def take_back(redis: Redis, job_id: str) -> None:
    """What becomes of a job whose lease ran out because its worker was not heard of for long."""
    job = await JobQueue(redis).get(job_id)
    assert job is not None
    worker_id = await call(redis, "HGET", keys.job(job_id), "worker")
    assert await Leases(redis).release(Claim(job, worker_id.decode()))


async def test_a_lost_job_that_comes_back_goes_on_where_it_was(
    redis: Redis, version: ModelVersion, plans: ModelPlans
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(PAIR)
        await until(gate.reached.is_set)
        await take_back(redis, job_id)
        await worker.has_attempted(job_id, 2)
        gate.open.set()
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        assert len(await worker.images(job_id)) == 2
        await until(lambda: worker.num_jobs("succeeded") == 1)
        assert worker.is_idle()
        assert worker.num_jobs("dropped") == 0
        assert worker.count("msf_steps_total", stage="base") == 2 * 4  # none was made twice


async def test_a_lost_job_may_come_back_after_its_loss_was_noticed(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, may_claim, noticed = Gate(), asyncio.Event(), asyncio.Event()
    claim, renew, sweep = Leases.claim, Leases.renew, Leases.sweep
    lost: set[str] = set()

    async def claim_late(
        leases: Leases, worker_id: str, model: str, version: str, max_samples: int, *, idle: bool
    ) -> Claimed:
        await may_claim.wait()
        return await claim(leases, worker_id, model, version, max_samples, idle=idle)

    async def renew_and_tell(leases: Leases, worker_id: str, claims: Sequence[Claim]) -> set[str]:
        lost.update(await renew(leases, worker_id, claims))
        return lost

    async def sweep_and_tell(leases: Leases) -> Swept:  # the worker's last call before it notes its losses
        swept = await sweep(leases)
        if lost:
            noticed.set()
        return swept

    monkeypatch.setattr(Leases, "claim", claim_late)
    monkeypatch.setattr(Leases, "renew", renew_and_tell)
    monkeypatch.setattr(Leases, "sweep", sweep_and_tell)
    may_claim.set()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await until(gate.reached.is_set)
        may_claim.clear()
        await worker.admit(SPEC)  # ends the wait for work, so that the next claim is one that waits
        await take_back(redis, job_id)
        await asyncio.wait_for(noticed.wait(), TIMEOUT_S)
        may_claim.set()
        await worker.has_attempted(job_id, 2)
        gate.open.set()
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED


async def test_a_job_that_comes_back_while_it_ends_is_held_under_its_new_lease(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoding, encode = Gate(), threading.Event(), threading.Event()

    def encode_late(image: NDArray[np.uint8], spec: JobSpec, *, index: int, provenance: Provenance) -> bytes:
        encoding.set()
        assert encode.wait(TIMEOUT_S)
        return encode_image(image, spec, index=index, provenance=provenance)

    monkeypatch.setattr(finishing, "encode_image", encode_late)
    gate.open.set()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await until(encoding.is_set)
        gate.open.clear()
        await take_back(redis, job_id)
        await worker.has_attempted(job_id, 2)
        encode.set()
        await until(lambda: worker.num_jobs("dropped") == 1)
        await renewal(redis, job_id)
        gate.open.set()
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        assert len(await worker.images(job_id)) == 1


async def renewal(redis: Redis, job_id: str) -> None:
    before = await redis.zscore(QUEUE.leases, job_id)
    assert before is not None

    async def is_later() -> bool:
        expiry = await redis.zscore(QUEUE.leases, job_id)
        return expiry is not None and expiry > before

    await until(is_later)


async def test_the_jobs_of_a_dead_worker_are_taken_over(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    job_id = await admit(JobQueue(redis), PAIR)
    await Leases(redis, lease_s=0.001).claim("dead", "tiny", "1", 1, idle=True)
    async with running(redis, version, plans) as worker:
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)


async def test_what_was_claimed_before_redis_went_away_is_worked_on(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker claims for one model after the other, and Redis may go between two."""
    second_claims = iter(("fails",))
    claim = Leases.claim

    async def claim_unsteadily(
        leases: Leases, worker_id: str, model: str, version: str, max_samples: int, *, idle: bool
    ) -> Claimed:
        if version == "2" and next(second_claims, None):
            raise QueueUnavailable("away")
        return await claim(leases, worker_id, model, version, max_samples, idle=idle)

    job_id = await admit(JobQueue(redis), SPEC)
    monkeypatch.setattr(Leases, "claim", claim_unsteadily)
    async with running(redis, version, plans, also=[replace(version, version="2")]) as worker:
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
