"""Strict jobs are bound to a fingerprint: only workers that have it run them."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_scheduler.jobs import JobRecord, JobState, Priority, Provenance, Terms
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, new_job_id
from tests.scheduler.support import (
    MODEL,
    REPLIES,
    TIMINGS,
    VERSION,
    ids,
    replies,
    spec,
    stored,
    try_claim,
    until_blocked,
)

KEY = (MODEL, VERSION)


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
def red(redis: Redis) -> Leases:
    return Leases(redis, fingerprints={KEY: "red"})


@pytest.fixture
def blue(redis: Redis) -> Leases:
    return Leases(redis, fingerprints={KEY: "blue"})


async def admit(
    queue: JobQueue,
    bound_to: str | None,
    *,
    tenant: str = "",
    priority: Priority = Priority.NORMAL,
    share: bool = False,
) -> JobRecord:
    return await queue.admit(
        spec(),
        Terms(tenant=tenant, priority=priority),
        job_id=new_job_id(),
        reply_to=REPLIES,
        bound_to=bound_to,
        fingerprint=bound_to if share else None,
    )


async def claimed(leases: Leases, worker_id: str, num_samples: int = 100) -> list[str]:
    return ids((await try_claim(leases, worker_id, num_samples, idle=False)).claims)


async def test_a_bound_job_is_claimed_by_its_fingerprint_only(queue: JobQueue, red: Leases, blue: Leases) -> None:
    free, bound = await admit(queue, None), await admit(queue, "red")
    assert bound.bound_to == "red"
    assert await claimed(blue, "b") == [free.id]
    assert await claimed(blue, "b") == []
    assert await claimed(red, "r") == [bound.id]


async def test_bound_and_unbound_jobs_of_a_tenant_keep_their_order(queue: JobQueue, red: Leases) -> None:
    jobs = [await admit(queue, bound_to) for bound_to in ("red", None, None, "red", None)]
    assert [(await claimed(red, "r", 1))[0] for _ in jobs] == [job.id for job in jobs]


async def test_tenants_share_across_bound_and_unbound(queue: JobQueue, red: Leases) -> None:
    flood = [await admit(queue, None, tenant="flood") for _ in range(6)]
    few = [await admit(queue, "red", tenant="few") for _ in range(2)]
    order = [(await claimed(red, "r", 1))[0] for _ in range(8)]
    assert max(order.index(job.id) for job in few) <= 3
    assert [job_id for job_id in order if job_id in {job.id for job in flood}] == [job.id for job in flood]


async def test_priority_precedes_binding(queue: JobQueue, red: Leases) -> None:
    low = await admit(queue, None, priority=Priority.LOW)
    high = await admit(queue, "red", priority=Priority.HIGH)
    normal = await admit(queue, None)
    assert await claimed(red, "r") == [high.id, normal.id, low.id]


async def test_a_bound_job_wakes_the_worker_that_may_run_it(
    redis: Redis, queue: JobQueue, red: Leases, blue: Leases
) -> None:
    other = asyncio.create_task(blue.wait_for_work([KEY], (), 60))
    await until_blocked(redis, 1)
    right = asyncio.create_task(red.wait_for_work([KEY], (), 60))
    await until_blocked(redis, 2)
    await admit(queue, "red")
    await asyncio.wait_for(right, 20)
    assert not other.done()
    other.cancel()


async def test_a_reclaimed_job_stays_bound(redis: Redis, queue: JobQueue, red: Leases, blue: Leases) -> None:
    job = await admit(queue, "red")
    brief = Leases(redis, lease_s=0.0, fingerprints={KEY: "red"})
    assert await claimed(brief, "r") == [job.id]
    await blue.sweep()
    assert await claimed(blue, "b") == []
    assert await claimed(red, "r") == [job.id]


async def test_suspects_stay_bound(redis: Redis, queue: JobQueue, red: Leases, blue: Leases) -> None:
    job = await admit(queue, "red")
    for _ in range(2):
        assert (await try_claim(red, "r", 1, idle=True)).claims
        await red.reclaim("r")
    assert (await stored(queue, job.id)).is_suspect
    assert not (await try_claim(blue, "b", 1, idle=True)).alone
    assert ids((await try_claim(red, "r", 1, idle=True)).claims) == [job.id]


async def forget(redis: Redis, fingerprint: str) -> None:
    """Let the fingerprint seem unseen for long."""
    await redis.zadd(f"{QueueKeys.of(*KEY).prefix}fingerprints", {fingerprint: 0})


async def test_jobs_of_a_lost_fingerprint_fail(redis: Redis, queue: JobQueue, blue: Leases) -> None:
    jobs = [await admit(queue, "red", share=True) for _ in range(2)]
    free = await admit(queue, None)
    await forget(redis, "red")
    await blue.sweep()
    for job in jobs:
        record = await stored(queue, job.id)
        assert record.state is JobState.FAILED
        assert record.error is not None
        assert record.error.code == "fingerprint_gone"
    assert sorted(await replies(redis)) == sorted((job.id, "failed") for job in jobs)
    assert (await stored(queue, free.id)).state is JobState.QUEUED
    assert (await queue.depth(*KEY)).num_samples == 1


async def test_a_worker_that_is_busy_keeps_its_fingerprint(redis: Redis, queue: JobQueue, red: Leases) -> None:
    await admit(queue, "red")
    claims = (await try_claim(red, "r", 1, idle=True)).claims
    waiting = await admit(queue, "red")
    await forget(redis, "red")
    await red.renew("r", claims)
    await red.sweep()
    assert (await stored(queue, waiting.id)).state is JobState.QUEUED


async def test_provenance_is_shared_with_the_result(queue: JobQueue, red: Leases) -> None:
    provenance = Provenance(fingerprint="red", reproducibility="strict")
    jobs = [await admit(queue, "red", share=True) for _ in range(2)]
    [lease] = (await try_claim(red, "r", 10, idle=True)).claims
    await red.succeed(lease, [b"image"], TIMINGS, provenance)
    jobs.append(await admit(queue, "red", share=True))
    for job in jobs:
        record = await stored(queue, job.id)
        assert record.provenance == provenance
        assert await queue.images(record) == [b"image"]
