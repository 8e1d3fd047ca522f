from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from msf_scheduler.claims import SweepResult
from msf_scheduler.connection import call
from msf_scheduler.jobs import JobError, JobState
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, QueueDepth
from tests.polling import eventually
from tests.scheduler.support import MODEL, TIMINGS, VERSION, admit, claim, ids, images_of, stored


async def test_first_in_first_out(queue: JobQueue, leases: Leases) -> None:
    admitted = [(await admit(queue)).id for _ in range(10)]
    assert ids(await claim(leases, num_samples=4)) == admitted[:4]
    assert ids(await claim(leases, "worker-2", num_samples=100)) == admitted[4:]
    assert await claim(leases) == []


async def test_a_claimed_job_is_running_and_belongs_to_one_worker(queue: JobQueue, leases: Leases) -> None:
    admitted = [(await admit(queue)).id for _ in range(50)]
    claims = await asyncio.gather(*(claim(leases, f"worker-{i}", 2) for i in range(40)))
    taken = [lease for batch in claims for lease in batch]
    assert sorted(ids(taken)) == sorted(admitted)
    assert {(lease.job.state, lease.job.attempt) for lease in taken} == {(JobState.RUNNING, 1)}


async def test_success_stores_images_timings_and_time(queue: JobQueue, leases: Leases) -> None:
    await admit(queue, 2)
    [lease] = await claim(leases)
    images = [b"\x89PNG\x00\xff", b""]
    assert await leases.succeed(lease, images, TIMINGS)

    record = await stored(queue, lease.job.id)
    assert (record.state, record.timings, record.error) == (JobState.SUCCEEDED, TIMINGS, None)
    assert record.claimed_at is not None
    assert record.finished_at is not None
    assert record.admitted_at <= record.claimed_at <= record.finished_at
    assert await images_of(queue, lease.job.id) == images
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)


async def test_a_second_finish_is_dropped(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    [lease] = await claim(leases)
    outcomes = await asyncio.gather(*(leases.succeed(lease, [bytes([i])], TIMINGS) for i in range(20)))
    first = outcomes.index(True)
    assert sum(outcomes) == 1
    assert not await leases.fail(lease, JobError(code="late", message=""))
    assert not await leases.release(lease)
    assert await images_of(queue, lease.job.id) == [bytes([first])]
    assert (await stored(queue, lease.job.id)).state is JobState.SUCCEEDED
    assert (await queue.depth(MODEL, VERSION)).num_samples == 0


async def test_failure_stores_the_error(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    [lease] = await claim(leases)
    error = JobError(code="non_finite", message="sample 0 became NaN")
    assert await leases.fail(lease, error)
    record = await stored(queue, lease.job.id)
    assert (record.state, record.error, record.timings) == (JobState.FAILED, error, None)
    assert await images_of(queue, lease.job.id) == []


async def test_only_ended_jobs_are_forgotten(redis: Redis) -> None:
    queue, leases = JobQueue(redis, result_ttl_s=0.0), Leases(redis, result_ttl_s=0.0)
    queued, ended = await admit(queue), await admit(queue)
    lease, other = await claim(leases, num_samples=2)
    await leases.release(lease)
    await leases.sweep()
    assert await queue.get(queued.id) is not None
    await leases.succeed(other, [b"image"], TIMINGS)
    await leases.sweep()
    assert await queue.get(ended.id) is None
    assert await call(redis, "KEYS", f"*{ended.id}*") == []
    assert await queue.get(queued.id) is not None


async def test_a_released_job_returns_to_its_place(queue: JobQueue, leases: Leases) -> None:
    admitted = [(await admit(queue)).id for _ in range(3)]
    first, second = await claim(leases, num_samples=2)
    assert await leases.release(second)
    assert await leases.release(first)
    assert not await leases.release(first)

    again = await claim(leases, "worker-2", num_samples=3)
    assert ids(again) == admitted
    assert [lease.job.attempt for lease in again] == [2, 2, 1]
    assert not await leases.succeed(first, [], TIMINGS)


async def test_a_dead_workers_job_restarts_on_another(queue: JobQueue, leases: Leases, dying: Leases) -> None:
    admitted = [(await admit(queue)).id for _ in range(2)]
    [dead] = await claim(dying, "dead")
    assert await leases.sweep() == SweepResult(num_requeued=1)
    alive, _ = await claim(leases, "alive", num_samples=2)

    assert (alive.job.id, alive.job.attempt) == (admitted[0], 2)
    assert await leases.renew("dead", [dead]) == {dead.job.id}
    assert not await leases.succeed(dead, [b"late"], TIMINGS)
    assert not await leases.fail(dead, JobError(code="late", message=""))
    assert not await leases.release(dead)
    assert await leases.succeed(alive, [b"good"], TIMINGS)
    assert await images_of(queue, alive.job.id) == [b"good"]


async def test_an_earlier_attempt_of_the_same_worker_is_stale(queue: JobQueue, leases: Leases, dying: Leases) -> None:
    await admit(queue)
    [stalled] = await claim(dying)
    await leases.sweep()
    [resumed] = await claim(leases)
    assert not await leases.succeed(stalled, [b"old"], TIMINGS)
    assert await leases.succeed(resumed, [b"new"], TIMINGS)


async def test_a_renewed_lease_is_not_reclaimed(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    brief = Leases(redis, lease_s=0.05)
    renewed, abandoned = await admit(queue), await admit(queue)
    claims = await claim(brief, num_samples=2)
    assert await leases.renew("worker-1", claims[:1]) == set()

    async def abandoned_is_back() -> bool:
        await leases.sweep()
        return (await stored(queue, abandoned.id)).state is JobState.QUEUED

    await eventually(abandoned_is_back)
    assert (await stored(queue, renewed.id)).state is JobState.RUNNING


async def test_cancelling_a_queued_job(queue: JobQueue, leases: Leases) -> None:
    job, other = await admit(queue), await admit(queue)
    assert await queue.cancel(job.id) is JobState.CANCELLED
    assert await queue.cancel(job.id) is JobState.CANCELLED
    assert ids(await claim(leases, num_samples=5)) == [other.id]
    assert (await queue.depth(MODEL, VERSION)).num_samples == 1


async def test_cancelling_a_running_job_reaches_its_worker(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    await admit(queue)
    cancelled, other = await claim(leases, num_samples=2)
    assert await queue.cancel(cancelled.job.id) is JobState.CANCELLED
    assert await leases.renew("worker-1", [cancelled, other]) == {cancelled.job.id}
    assert not await leases.succeed(cancelled, [b"late"], TIMINGS)
    assert await images_of(queue, cancelled.job.id) == []
    assert (await queue.depth(MODEL, VERSION)).num_samples == 1


async def test_cancelling_an_ended_or_unknown_job_changes_nothing(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    [lease] = await claim(leases)
    await leases.succeed(lease, [b"image"], TIMINGS)
    assert await queue.cancel(lease.job.id) is JobState.SUCCEEDED
    assert await images_of(queue, lease.job.id) == [b"image"]
    assert await queue.cancel("unknown") is None
    assert await queue.get("unknown") is None


async def test_depth_has_the_age_of_the_oldest_queued_job_and_the_steps_of_all(queue: JobQueue, leases: Leases) -> None:
    await admit(queue, 3, num_steps=20)
    await admit(queue, 2, num_steps=10)
    assert (await queue.depth(MODEL, VERSION)).num_steps_queued == 3 * 21 + 2 * 11
    (running,) = await claim(leases)
    depth = await queue.depth(MODEL, VERSION)
    assert (depth.num_jobs_queued, depth.num_jobs_running, depth.num_samples) == (1, 1, 5)
    assert depth.num_steps_queued == 2 * 11
    assert 0 < depth.oldest_age_s < 60
    await leases.release(running)
    assert (await queue.depth(MODEL, VERSION)).num_steps_queued == 3 * 21 + 2 * 11
