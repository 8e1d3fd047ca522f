from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_scheduler.claims import SweepResult
from msf_scheduler.errors import DeadlineTooShort
from msf_scheduler.jobs import JobState
from msf_scheduler.leases import Leases
from msf_scheduler.notices import notices
from msf_scheduler.queue import JobQueue, QueueDepth
from tests.polling import eventually
from tests.scheduler.support import MODEL, REPLIES, TIMINGS, VERSION, admit, claim, ids, replies, stored


async def test_a_job_that_cannot_end_in_time_is_refused(queue: JobQueue, leases: Leases) -> None:
    with pytest.raises(DeadlineTooShort, match=r"timeout_s is 1, .*at least 2 s"):
        await admit(queue, timeout_s=1.0, least_s=2.0)
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert await claim(leases) == []


async def late_job(queue: JobQueue) -> str:
    """Admit a job with a millisecond of slack and wait until that has passed."""
    job = await admit(queue, 2, REPLIES, timeout_s=100.0, least_s=100.0 - 0.001)
    record = await stored(queue, job.id)
    assert record.deadline_at == pytest.approx(record.admitted_at + 100)

    async def has_passed() -> bool:
        return (await queue.depth(MODEL, VERSION)).oldest_age_s > 0.005

    await eventually(has_passed)
    return job.id


async def test_a_claim_expires_late_jobs(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    late_id, fine = await late_job(queue), await admit(queue, timeout_s=100.0)
    assert ids(await claim(leases, num_samples=1)) == [fine.id]
    record = await stored(queue, late_id)
    assert (record.state, record.error and record.error.code) == (JobState.EXPIRED, "deadline")
    assert await replies(redis) == [(late_id, "expired")]
    assert (await queue.depth(MODEL, VERSION)).num_samples == 1


async def test_a_sweep_expires_late_jobs(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    late_id, _ = await late_job(queue), await admit(queue, timeout_s=100.0)
    assert await leases.sweep() == SweepResult(num_expired=1)
    assert (await stored(queue, late_id)).state is JobState.EXPIRED
    assert await replies(redis) == [(late_id, "expired")]
    assert (await queue.depth(MODEL, VERSION)).num_jobs_queued == 1


async def test_a_worker_expires_a_job_that_it_cannot_finish_in_time(queue: JobQueue, leases: Leases) -> None:
    job = await admit(queue, timeout_s=100.0)
    [lease] = await claim(leases)
    assert await leases.expire(lease)
    assert not await leases.succeed(lease, [b"late"], TIMINGS)
    assert (await stored(queue, job.id)).state is JobState.EXPIRED


async def test_a_worker_is_notified_of_cancellations(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    jobs = [await admit(queue) for _ in range(3)]
    await claim(leases, "mine", 2)
    await claim(leases, "other")
    for job in jobs:
        await queue.cancel(job.id)
    async with asyncio.timeout(4):
        async for notice in notices(redis, "mine"):
            assert notice.cancelled == (jobs[0].id, jobs[1].id)
            break
