from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_serve.scheduler import keys
from msf_serve.scheduler.jobs import JobError, JobRecord, JobState
from msf_serve.scheduler.queue import Claim, JobQueue, QueueDepth, Reclaimed
from tests.scheduler.support import MODEL, TIMINGS, VERSION, admit, claim, until, until_blocked


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
def dying(redis: Redis) -> JobQueue:
    """Leases that are over as soon as they are given: its workers are as good as dead."""
    return JobQueue(redis, lease_s=0.0)


async def stored(queue: JobQueue, job_id: str) -> JobRecord:
    record = await queue.get(job_id)
    assert record is not None
    return record


def ids(claims: list[Claim]) -> list[str]:
    return [held.job.id for held in claims]


async def test_first_in_first_out(queue: JobQueue) -> None:
    admitted = [(await admit(queue)).id for _ in range(30)]
    assert ids(await claim(queue, max_samples=10)) == admitted[:10]
    assert ids(await claim(queue, "worker-2", max_samples=100)) == admitted[10:]
    assert await claim(queue) == []


async def test_whole_jobs_are_claimed_until_the_samples_are_covered(queue: JobQueue) -> None:
    admitted = [(await admit(queue, num_samples)).id for num_samples in (2, 2, 2, 50, 1)]
    assert ids(await claim(queue, max_samples=3)) == admitted[:2]
    assert ids(await claim(queue, max_samples=1)) == admitted[2:3]
    assert ids(await claim(queue, max_samples=8)) == admitted[3:4], "more samples than slots"
    assert await claim(queue, max_samples=0) == []
    assert await queue.depth(MODEL, VERSION) != QueueDepth(0, 0, 0, 0.0)


async def test_a_claimed_job_is_running_and_belongs_to_one_worker(queue: JobQueue) -> None:
    admitted = [(await admit(queue)).id for _ in range(50)]
    claims = await asyncio.gather(*(claim(queue, f"worker-{i}", 2) for i in range(40)))
    taken = [held for batch in claims for held in batch]
    assert sorted(ids(taken)) == sorted(admitted)
    assert {(held.job.state, held.job.attempt) for held in taken} == {(JobState.RUNNING, 1)}


async def test_success_stores_images_timings_and_time(queue: JobQueue) -> None:
    await admit(queue, 2)
    [held] = await claim(queue)
    images = [b"\x89PNG\x00\xff", b""]
    assert await queue.succeed(held, images, TIMINGS)

    record = await stored(queue, held.job.id)
    assert (record.state, record.timings, record.error) == (JobState.SUCCEEDED, TIMINGS, None)
    assert record.claimed_at is not None
    assert record.finished_at is not None
    assert record.admitted_at <= record.claimed_at <= record.finished_at
    assert await queue.images(held.job.id) == images
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0.0)


async def test_a_second_finish_is_dropped(queue: JobQueue) -> None:
    await admit(queue)
    [held] = await claim(queue)
    outcomes = await asyncio.gather(*(queue.succeed(held, [bytes([i])], TIMINGS) for i in range(20)))
    first = outcomes.index(True)
    assert sum(outcomes) == 1
    assert not await queue.fail(held, JobError(code="late", message=""))
    assert not await queue.release(held)
    assert await queue.images(held.job.id) == [bytes([first])]
    assert (await stored(queue, held.job.id)).state is JobState.SUCCEEDED
    assert (await queue.depth(MODEL, VERSION)).num_samples == 0


async def test_failure_says_why(queue: JobQueue) -> None:
    await admit(queue)
    [held] = await claim(queue)
    error = JobError(code="non_finite", message="sample 0 became NaN")
    assert await queue.fail(held, error)
    record = await stored(queue, held.job.id)
    assert (record.state, record.error, record.timings) == (JobState.FAILED, error, None)
    assert await queue.images(held.job.id) == []


async def test_only_what_has_ended_may_expire(queue: JobQueue, redis: Redis) -> None:
    job = await admit(queue, reply_to="replies")
    assert await redis.ttl(keys.job(job.id)) == -1
    [held] = await claim(queue)
    assert await redis.ttl(keys.job(job.id)) == -1
    await queue.succeed(held, [b"image"], TIMINGS)
    for key in (keys.job(job.id), keys.images(job.id), "replies"):
        assert 590 < await redis.ttl(key) <= 600


async def test_a_released_job_goes_back_to_its_place_with_a_clean_record(queue: JobQueue) -> None:
    admitted = [(await admit(queue)).id for _ in range(3)]
    first, second = await claim(queue, max_samples=2)
    assert await queue.release(second)
    assert await queue.release(first)
    assert not await queue.release(first)

    again = await claim(queue, "worker-2", max_samples=3)
    assert ids(again) == admitted
    assert {held.job.attempt for held in again} == {1}
    assert not await queue.succeed(first, [], TIMINGS)


async def test_a_dead_workers_job_starts_again_elsewhere(queue: JobQueue, dying: JobQueue) -> None:
    admitted = [(await admit(queue)).id for _ in range(2)]
    [dead] = await claim(dying, "dead")
    assert await queue.reclaim() == Reclaimed(num_requeued=1, num_failed=0)
    alive, _ = await claim(queue, "alive", max_samples=2)

    assert (alive.job.id, alive.job.attempt) == (admitted[0], 2)
    assert await queue.renew("dead", [dead]) == {dead.job.id}
    assert not await queue.succeed(dead, [b"late"], TIMINGS)
    assert not await queue.fail(dead, JobError(code="late", message=""))
    assert not await queue.release(dead)
    assert await queue.succeed(alive, [b"good"], TIMINGS)
    assert await queue.images(alive.job.id) == [b"good"]


async def test_an_earlier_attempt_of_the_same_worker_is_stale(queue: JobQueue, dying: JobQueue) -> None:
    await admit(queue)
    [stalled] = await claim(dying)
    await queue.reclaim()
    [resumed] = await claim(queue)
    assert not await queue.succeed(stalled, [b"old"], TIMINGS)
    assert await queue.succeed(resumed, [b"new"], TIMINGS)


async def test_a_renewed_lease_is_not_reclaimed(queue: JobQueue, redis: Redis) -> None:
    brief = JobQueue(redis, lease_s=0.05)
    renewed, abandoned = await admit(queue), await admit(queue)
    claims = await claim(brief, max_samples=2)
    assert await queue.renew("worker-1", claims[:1]) == set()

    async def abandoned_is_back() -> bool:
        await queue.reclaim()
        return (await stored(queue, abandoned.id)).state is JobState.QUEUED

    await until(abandoned_is_back)
    assert (await stored(queue, renewed.id)).state is JobState.RUNNING


async def test_a_job_that_kills_its_workers_ends_as_poisoned(queue: JobQueue, dying: JobQueue) -> None:
    job = await admit(queue, 2)
    for attempt in (1, 2, 3):
        [held] = await claim(dying)
        assert held.job.attempt == attempt
        await queue.release(held)  # a drain in between is not held against it
        [held] = await claim(dying)
        reclaimed = await queue.reclaim()
    assert reclaimed == Reclaimed(num_requeued=0, num_failed=1)

    record = await stored(queue, job.id)
    assert record.state is JobState.FAILED
    assert record.error is not None
    assert record.error.code == "poisoned"
    assert not await queue.succeed(held, [b"late"], TIMINGS)
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0.0)


async def test_cancelling_a_queued_job(queue: JobQueue) -> None:
    job, other = await admit(queue), await admit(queue)
    assert await queue.cancel(job.id) is JobState.CANCELLED
    assert await queue.cancel(job.id) is JobState.CANCELLED
    assert ids(await claim(queue, max_samples=5)) == [other.id]
    assert (await queue.depth(MODEL, VERSION)).num_samples == 1


async def test_cancelling_a_running_job_reaches_its_worker(queue: JobQueue) -> None:
    await admit(queue)
    await admit(queue)
    cancelled, kept = await claim(queue, max_samples=2)
    assert await queue.cancel(cancelled.job.id) is JobState.CANCELLED
    assert await queue.renew("worker-1", [cancelled, kept]) == {cancelled.job.id}
    assert not await queue.succeed(cancelled, [b"late"], TIMINGS)
    assert await queue.images(cancelled.job.id) == []
    assert (await queue.depth(MODEL, VERSION)).num_samples == 1


async def test_cancelling_comes_too_late_or_knows_no_such_job(queue: JobQueue) -> None:
    await admit(queue)
    [held] = await claim(queue)
    await queue.succeed(held, [b"image"], TIMINGS)
    assert await queue.cancel(held.job.id) is JobState.SUCCEEDED
    assert await queue.images(held.job.id) == [b"image"]
    assert await queue.cancel("unknown") is None
    assert await queue.get("unknown") is None


async def test_depth_tells_the_age_of_the_oldest_queued_job(queue: JobQueue) -> None:
    await admit(queue, 3)
    await admit(queue, 2)
    await claim(queue)
    depth = await queue.depth(MODEL, VERSION)
    assert (depth.num_jobs_queued, depth.num_jobs_running, depth.num_samples) == (1, 1, 5)
    assert 0 < depth.oldest_age_s < 60


async def test_an_admission_wakes_every_waiting_worker(queue: JobQueue, redis: Redis) -> None:
    models = [(MODEL, VERSION), ("letters", VERSION)]
    for model, version in models:
        await queue.claim("worker-1", model, version, 1)
    waiting = [asyncio.create_task(queue.wait_for_work(models, 60)) for _ in range(3)]
    await until_blocked(redis, 3)
    await admit(queue)
    async with asyncio.timeout(4):  # sooner than the longest wait
        await asyncio.gather(*waiting)


async def test_work_that_came_between_claim_and_wait_is_not_missed(queue: JobQueue, dying: JobQueue) -> None:
    models = [(MODEL, VERSION)]

    async def wakes_at_once() -> None:
        async with asyncio.timeout(4):
            await queue.wait_for_work(models, 60)

    job = await admit(queue)
    await wakes_at_once()  # never claimed
    await admit(queue)
    [held] = await claim(queue)
    await wakes_at_once()  # claimed, but not all
    await claim(queue)
    await queue.release(held)
    await wakes_at_once()
    [held] = await claim(dying)
    assert await claim(queue) == []
    await queue.reclaim()
    await wakes_at_once()
    assert ids(await claim(queue)) == [job.id]


async def test_waiting_for_nothing_ends(queue: JobQueue) -> None:
    await claim(queue)
    await queue.wait_for_work([(MODEL, VERSION)], 0.01)
    await queue.wait_for_work([(MODEL, VERSION)], 0)
