"""Lost leases and an unavailable Redis: every job still ends once, and no slot stays in use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler import keys
from msf_scheduler.claims import Claim, ClaimRequest, ClaimResult
from msf_scheduler.connection import call, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobSpec, JobState, Provenance
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from msf_scheduler.stage import Stage
from msf_worker import job_finisher
from msf_worker import worker as worker_module
from msf_worker.image_encoder import encode_image
from tests.polling import eventually
from tests.worker.support import SPEC, TIMEOUT_S, Gate, admit, running, with_plans

QUEUE = QueueKeys.of("tiny", "1")
PAIR = SPEC.model_copy(update={"num_samples": 2})


@pytest.mark.slow
async def test_a_job_that_ends_while_redis_is_down_is_stored_when_it_returns(
    tmp_path: Path, version: ModelVersion, plans: ModelPlans, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    with EmbeddedValkey(tmp_path) as valkey:
        async with (
            connect(valkey.url) as redis,
            running(redis, version, with_plans(plans, Stage.DECODE, gate)) as worker,
        ):
            job_id = await worker.admit(PAIR)
            await eventually(gate.reached.is_set)
            await asyncio.to_thread(valkey.stop)
            gate.open.set()
            await eventually(lambda: "waiting for Redis" in caplog.text)
            await asyncio.to_thread(valkey.start)
            job = await worker.end_of(job_id)
            assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
            assert len(await worker.images(job_id)) == 2
            after = await worker.admit(SPEC)
            assert (await worker.end_of(after)).state is JobState.SUCCEEDED
            await eventually(lambda: worker.num_jobs("succeeded") == 2)
            assert worker.num_jobs("dropped") == 0


async def requeue(redis: Redis, job_id: str) -> None:
    """Return a job to the queue, as a sweep does when its lease has expired."""
    job = await JobQueue(redis).get(job_id)
    assert job is not None
    worker_id = await call(redis, "HGET", keys.job(job_id), "worker")
    assert await Leases(redis).release(Claim(job, worker_id.decode()))


async def test_a_lost_job_that_comes_back_ends_once(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(PAIR)
        await eventually(gate.reached.is_set)
        await requeue(redis, job_id)
        await worker.has_attempted(job_id, 2)
        gate.open.set()
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        assert len(await worker.images(job_id)) == 2
        await eventually(lambda: worker.num_jobs("succeeded") == 1)
        assert worker.is_idle()
        assert worker.num_jobs("dropped") == 0


class PausedLeases(Leases):
    """Leases whose claims wait while `may_claim` is clear."""

    may_claim: ClassVar[asyncio.Event]

    async def claim_many(self, *args: Any, **kwargs: Any) -> list[ClaimResult]:
        await self.may_claim.wait()
        return await super().claim_many(*args, **kwargs)


async def test_a_lost_job_may_come_back_after_its_loss_is_noticed(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, PausedLeases.may_claim = Gate(), asyncio.Event()
    monkeypatch.setattr(worker_module, "Leases", PausedLeases)
    PausedLeases.may_claim.set()
    async with running(redis, version, with_plans(plans, Stage.RESIDUAL, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await eventually(gate.reached.is_set)
        PausedLeases.may_claim.clear()
        await worker.admit(SPEC)  # wakes the claiming loop, whose next claim then waits
        await requeue(redis, job_id)
        await eventually(lambda: worker.num_jobs("lost") == 1)
        PausedLeases.may_claim.set()
        await worker.has_attempted(job_id, 2)
        gate.open.set()
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED


async def test_a_job_that_comes_back_while_it_ends_keeps_its_new_lease(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoding, encode = Gate(), threading.Event(), threading.Event()

    def encode_late(image: NDArray[np.uint8], spec: JobSpec, *, index: int, provenance: Provenance) -> bytes:
        encoding.set()
        assert encode.wait(TIMEOUT_S)
        return encode_image(image, spec, index=index, provenance=provenance)

    monkeypatch.setattr(job_finisher, "encode_image", encode_late)
    gate.open.set()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate)) as worker:
        job_id = await worker.admit(SPEC)
        await eventually(encoding.is_set)
        gate.open.clear()
        await requeue(redis, job_id)
        await worker.has_attempted(job_id, 2)
        encode.set()
        await eventually(lambda: worker.num_jobs("dropped") == 1)
        await next_renewal(redis, job_id)
        gate.open.set()
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
        assert len(await worker.images(job_id)) == 1


async def next_renewal(redis: Redis, job_id: str) -> None:
    before = await redis.zscore(f"{QUEUE.prefix}leases", job_id)
    assert before is not None

    async def is_later() -> bool:
        expiry = await redis.zscore(f"{QUEUE.prefix}leases", job_id)
        return expiry is not None and expiry > before

    await eventually(is_later)


async def test_the_jobs_of_a_dead_worker_are_taken_over(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    job_id = await admit(JobQueue(redis), PAIR)
    await Leases(redis, lease_s=0.001).claim("dead", "tiny", "1", budget_steps=1, held=(), max_samples=1, idle=True)
    async with running(redis, version, plans) as worker:
        job = await worker.end_of(job_id)
        assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)


class FlakyLeases(Leases):
    """Leases whose first claim of version 2 fails."""

    has_failed = False

    async def _claim_at_once(
        self, worker_id: str, requests: Sequence[ClaimRequest], *, idle: bool
    ) -> list[ClaimResult]:
        if requests[0].model == ("tiny", "2") and not self.has_failed:
            self.has_failed = True
            raise QueueUnavailable("the test says so")
        return await super()._claim_at_once(worker_id, requests, idle=idle)


async def test_a_claimed_job_is_run_if_redis_fails_before_the_next_claim(
    redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker claims for one model after the other, and Redis may fail in between."""
    job_id = await admit(JobQueue(redis), SPEC)
    monkeypatch.setattr(worker_module, "Leases", FlakyLeases)
    async with running(redis, version, plans, also=[replace(version, version="2")]) as worker:
        assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
