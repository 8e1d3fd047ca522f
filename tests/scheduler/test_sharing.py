"""Repeated requests of one caller, and identical requests of several."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from msf_scheduler.claims import SweepResult
from msf_scheduler.errors import DeadlineTooShort, IdempotencyConflict
from msf_scheduler.jobs import JobError, JobRecord, JobState, Priority, Provenance, Terms
from msf_scheduler.keys import RESERVED
from msf_scheduler.leases import Leases
from msf_scheduler.queue import Idempotency, JobQueue, QueueDepth, new_job_id
from tests.scheduler.support import MODEL, REPLIES, TIMINGS, VERSION, claim, ids, images_of, replies, spec, stored

FINGERPRINT = "openvino bf16"


async def ask(queue: JobQueue, key: str, body: bytes = b"body", tenant: str = "a") -> JobRecord:
    return await queue.admit(
        spec(), Terms(tenant=tenant), job_id=new_job_id(), reply_to=REPLIES, idempotency=Idempotency(key, body)
    )


PROVENANCE = Provenance(fingerprint=FINGERPRINT, reproducibility="fast")


async def share(
    queue: JobQueue,
    seed: int = 7,
    fingerprint: str | None = FINGERPRINT,
    timeout_s: float | None = None,
    least_s: float = 0.0,
    priority: Priority = Priority.NORMAL,
) -> JobRecord:
    return await queue.admit(
        spec(2, seed),
        Terms(timeout_s=timeout_s, priority=priority),
        job_id=new_job_id(),
        reply_to=REPLIES,
        fingerprint=fingerprint,
        least_s=least_s,
        result_bytes=100,
    )


async def test_repeating_an_idempotency_key_returns_the_same_job(queue: JobQueue, leases: Leases) -> None:
    first = await ask(queue, "key")
    assert (await ask(queue, "key")).id == first.id
    assert (await queue.depth(MODEL, VERSION)).num_jobs_queued == 1
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"image"], TIMINGS)
    again = await ask(queue, "key")
    assert (again.id, again.state) == (first.id, JobState.SUCCEEDED)


async def test_an_idempotency_key_stands_for_one_request_of_one_tenant(queue: JobQueue) -> None:
    first = await ask(queue, "key")
    with pytest.raises(IdempotencyConflict, match=first.id):
        await ask(queue, "key", b"another body")
    assert (await ask(queue, "key", b"another body", tenant="b")).id != first.id
    assert (await ask(queue, "other", b"another body")).id != first.id


async def test_an_idempotency_key_lives_as_long_as_its_result(redis: Redis) -> None:
    queue, leases = JobQueue(redis, result_ttl_s=0.0), Leases(redis, result_ttl_s=0.0)
    first = await ask(queue, "key")
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"image"], TIMINGS)
    await leases.sweep()
    assert (await ask(queue, "key", b"another body")).id != first.id


async def test_every_caller_with_the_idempotency_key_is_answered(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    first = await ask(queue, "key")
    await queue.admit(
        spec(), Terms(tenant="a"), job_id=new_job_id(), reply_to="others", idempotency=Idempotency("key", b"body")
    )
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"image"], TIMINGS)
    assert await replies(redis) == [(first.id, "succeeded")]
    assert await redis.xlen("others") == 1


async def test_identical_work_is_done_once(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    leader, follower, other = await share(queue), await share(queue), await share(queue, seed=8)
    assert (await queue.depth(MODEL, VERSION)).num_samples == 4
    assert int(await redis.get(RESERVED) or 0) == 200
    claims = await claim(leases, num_samples=10)
    assert ids(claims) == [leader.id, other.id]
    for lease in claims:
        await leases.succeed(lease, [lease.job.id.encode(), b"2"], TIMINGS, PROVENANCE)

    assert await images_of(queue, follower.id) == await images_of(queue, leader.id) == [leader.id.encode(), b"2"]
    assert sorted(await replies(redis)) == sorted((job.id, "succeeded") for job in (leader, follower, other))
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert int(await redis.get(RESERVED) or 0) == 0


async def test_a_result_is_reused_for_later_requests(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    leader = await share(queue)
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"1", b"2"], TIMINGS, PROVENANCE)
    late = await share(queue)
    assert (late.state, late.images_of, late.timings) == (JobState.SUCCEEDED, leader.id, TIMINGS)
    assert await queue.images(late) == [b"1", b"2"]
    assert (await share(queue, fingerprint="eager")).state is JobState.QUEUED
    assert (await share(queue, fingerprint=None)).state is JobState.QUEUED
    assert (await queue.depth(MODEL, VERSION)).num_samples == 4


@pytest.mark.parametrize("is_running", [False, True], ids=["queued", "running"])
@pytest.mark.parametrize("end", ["cancel", "expire"])
async def test_ending_one_of_several_identical_jobs_keeps_the_others(
    queue: JobQueue, leases: Leases, redis: Redis, end: str, is_running: bool
) -> None:
    jobs = [await share(queue, timeout_s=100) for _ in range(4)]
    if is_running:
        [stale] = await claim(leases)
    await getattr(queue, end)(jobs[0].id)
    await getattr(queue, end)(jobs[2].id)
    if is_running:
        assert not await leases.succeed(stale, [b"late", b"late"], TIMINGS, PROVENANCE)
    [lease] = await claim(leases, num_samples=10)
    assert lease.job.id == jobs[1].id
    assert (await share(queue)).state is JobState.QUEUED, "and others can join"
    await leases.succeed(lease, [b"1", b"2"], TIMINGS, PROVENANCE)
    for job in (jobs[1], jobs[3]):
        assert await images_of(queue, job.id) == [b"1", b"2"]
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert int(await redis.get(RESERVED) or 0) == 0
    assert len(await replies(redis)) == 5


async def test_cancelled_followers_are_not_answered_again(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    jobs = [await share(queue) for _ in range(3)]
    await queue.cancel(jobs[0].id)
    await queue.cancel(jobs[2].id)
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"1", b"2"], TIMINGS, PROVENANCE)
    assert (await stored(queue, jobs[2].id)).state is JobState.CANCELLED
    assert Counter(await replies(redis)) == {
        (jobs[0].id, "cancelled"): 1,
        (jobs[1].id, "succeeded"): 1,
        (jobs[2].id, "cancelled"): 1,
    }


async def test_a_follower_of_a_running_job_needs_no_time_to_run(queue: JobQueue, leases: Leases) -> None:
    """A running job may end soon, so only the deadline itself ends a follower."""
    await share(queue)
    [lease] = await claim(leases)
    follower = await share(queue, timeout_s=50.0, least_s=60.0)
    for _ in range(2):
        assert await leases.sweep() == SweepResult()
    late = await share(queue, timeout_s=1e-6)
    assert await leases.sweep() == SweepResult(num_expired=1)
    await leases.succeed(lease, [b"1", b"2"], TIMINGS, PROVENANCE)
    assert await images_of(queue, follower.id) == [b"1", b"2"]
    assert (await stored(queue, late.id)).state is JobState.EXPIRED


async def test_a_follower_of_a_queued_job_needs_time_to_run(queue: JobQueue) -> None:
    await share(queue)
    with pytest.raises(DeadlineTooShort):
        await share(queue, timeout_s=50.0, least_s=60.0)


async def test_a_failure_is_shared_but_not_reused(queue: JobQueue, leases: Leases) -> None:
    leader, follower = await share(queue), await share(queue)
    [lease] = await claim(leases)
    error = JobError(code="non_finite", message="")
    await leases.fail(lease, error)
    for job in (leader, follower):
        record = await stored(queue, job.id)
        assert (record.state, record.error) == (JobState.FAILED, error)
    assert (await share(queue)).state is JobState.QUEUED


async def test_a_result_of_other_plans_is_not_reused(queue: JobQueue, leases: Leases) -> None:
    await share(queue)
    follower = await share(queue)
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"1", b"2"], TIMINGS, Provenance(fingerprint="another", reproducibility="fast"))
    assert await images_of(queue, follower.id) == [b"1", b"2"]
    assert (await share(queue)).state is JobState.QUEUED


async def test_shared_images_live_as_long_as_their_last_reader(redis: Redis) -> None:
    brief, queue = Leases(redis, result_ttl_s=0.0), JobQueue(redis, result_ttl_s=600)
    await share(queue)
    [lease] = await claim(brief)
    await brief.succeed(lease, [b"1", b"2"], TIMINGS, PROVENANCE)
    late = await share(queue)
    await brief.sweep()
    assert await queue.images(late) == [b"1", b"2"]
