"""Jobs whose worker died, was late, or drained."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from msf_scheduler.claims import Claim, ClaimResult, JobEnd, SweepResult
from msf_scheduler.jobs import JobError, JobState
from msf_scheduler.keys import CLOCK, RESERVED, QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, QueueDepth
from msf_scheduler.scripts import call_all
from tests.scheduler.support import (
    MODEL,
    REPLIES,
    TIMINGS,
    VERSION,
    admit,
    claim,
    ids,
    images_of,
    replies,
    stored,
    try_claim,
)


async def claim_idle(leases: Leases, worker_id: str = "idle") -> ClaimResult:
    return await try_claim(leases, worker_id, 8, idle=True)


async def die(leases: Leases, times: int) -> None:
    for _ in range(times):
        assert (await claim_idle(leases, "victim")).claims
        await leases.reclaim("victim")


async def test_jobs_of_a_dead_worker_are_reclaimed_at_once(queue: JobQueue, leases: Leases) -> None:
    jobs = [await admit(queue) for _ in range(3)]
    mine, *_ = await claim(leases, "dead", 2)
    [other] = await claim(leases, "alive")
    assert await leases.reclaim("dead") == SweepResult(num_requeued=2)
    assert ids(await claim(leases, "alive", 5)) == [jobs[0].id, jobs[1].id]
    assert not await leases.succeed(mine, [b"late"], TIMINGS)
    assert await leases.succeed(other, [b"image"], TIMINGS)


async def test_a_suspect_runs_alone(queue: JobQueue, leases: Leases) -> None:
    suspect = await admit(queue)
    await die(leases, 2)
    normal = [await admit(queue) for _ in range(2)]

    busy = await try_claim(leases, "busy", 8, idle=False)
    assert busy == ClaimResult((), alone=True), "it takes nothing more until it is idle"
    other = await try_claim(leases, "other", 1, idle=False)
    assert (ids(other.claims), other.alone) == ([normal[0].id], False), "only one worker is reserved"
    alone = await try_claim(leases, "busy", 8, idle=True)
    assert (ids(alone.claims), alone.alone) == ([suspect.id], True)
    assert alone.claims[0].job.is_suspect
    assert ids((await claim_idle(leases)).claims) == [normal[1].id]


async def test_another_worker_runs_a_suspect_after_the_reservation_expires(queue: JobQueue, redis: Redis) -> None:
    leases, brief = Leases(redis), Leases(redis, lease_s=0.0)
    suspect = await admit(queue)
    await die(leases, 2)
    assert (await try_claim(brief, "busy", 8, idle=False)).alone
    assert ids((await claim_idle(leases)).claims) == [suspect.id]


async def test_a_dead_workers_reservation_of_a_suspect_ends(queue: JobQueue, leases: Leases) -> None:
    suspect = await admit(queue)
    await die(leases, 2)
    assert (await try_claim(leases, "busy", 8, idle=False)).alone
    assert not (await claim_idle(leases)).claims, "reserved for the other worker"
    await leases.reclaim("busy")
    assert ids((await claim_idle(leases)).claims) == [suspect.id]


async def test_suspects_wake_workers(queue: JobQueue, leases: Leases) -> None:
    suspects = [await admit(queue) for _ in range(2)]
    for _ in range(2):
        await claim(leases, "victim", 2)
        await leases.reclaim("victim")
    for suspect in suspects:
        async with asyncio.timeout(4):  # sooner than the longest wait
            await leases.wait_for_work([(MODEL, VERSION)], (), 60)
        assert ids((await claim_idle(leases, suspect.id)).claims) == [suspect.id]


async def test_a_job_is_poisoned_after_three_deaths_alone(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    job = await admit(queue, reply_to=REPLIES)
    await die(leases, 4)
    assert (await stored(queue, job.id)).state is JobState.QUEUED
    [lease] = (await claim_idle(leases, "victim")).claims
    assert await leases.reclaim("victim") == SweepResult(num_poisoned=1)
    record = await stored(queue, job.id)
    assert (record.state, record.error and record.error.code) == (JobState.FAILED, "poisoned")
    assert not await leases.succeed(lease, [b"late"], TIMINGS)
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert await queue.dead_letters(MODEL, VERSION) == [record]
    assert await replies(redis) == [(job.id, "failed")]


async def test_releases_do_not_make_a_job_suspect(queue: JobQueue, leases: Leases) -> None:
    job = await admit(queue)
    for _ in range(10):
        [lease] = await claim(leases)
        await leases.release(lease)
    assert not (await stored(queue, job.id)).is_suspect


async def test_lost_leases_of_living_workers_do_not_make_a_job_suspect(
    queue: JobQueue, leases: Leases, dying: Leases
) -> None:
    job = await admit(queue)
    paused = []
    for number in range(2):
        [lease] = await claim(dying, f"paused-{number}")
        assert (await leases.sweep()).num_requeued == 1
        paused.append(lease)
    assert (await stored(queue, job.id)).is_suspect
    for lease in paused:
        for _ in range(2):  # it counts once
            assert await leases.renew(lease.worker_id, [lease]) == {job.id}
    assert not (await stored(queue, job.id)).is_suspect
    for num_deaths in (1, 2):
        assert ids(await claim(leases)) == [job.id]
        await leases.reclaim("worker-1")
        assert (await stored(queue, job.id)).is_suspect is (num_deaths == 2)


async def test_lost_leases_of_living_workers_do_not_poison_a_suspect(
    queue: JobQueue, leases: Leases, dying: Leases
) -> None:
    job = await admit(queue)
    await die(leases, 2)
    for _ in range(5):
        [lease] = (await claim_idle(dying, "paused")).claims
        assert await leases.sweep() == SweepResult(num_requeued=1)
        assert await leases.renew("paused", [lease]) == {job.id}
    await die(leases, 2)
    assert (await stored(queue, job.id)).state is JobState.QUEUED
    [lease] = (await claim_idle(leases, "victim")).claims
    assert await leases.reclaim("victim") == SweepResult(num_poisoned=1)


async def test_setting_the_clock_ends_nothing(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    """Let Redis's clock seem to jump an hour ahead, then two back."""
    ended, running = await admit(queue), await admit(queue, timeout_s=300)
    waiting = await admit(queue, timeout_s=300)
    done, _ = await claim(leases, num_samples=2)
    await leases.succeed(done, [b"image"], TIMINGS)
    for jump_s in (3600, -7200):
        wall, offset = (float(value or 0) for value in await redis.hmget(CLOCK, "wall", "offset"))
        await redis.hset(CLOCK, mapping={"wall": wall - jump_s, "offset": offset + jump_s})
        assert await leases.sweep() == SweepResult()
    states = [(await stored(queue, job.id)).state for job in (ended, running, waiting)]
    assert states == [JobState.SUCCEEDED, JobState.RUNNING, JobState.QUEUED]
    late = await admit(queue)
    seconds, _ = await redis.time()
    assert abs(late.admitted_at - seconds) < 60, "records have Redis's own time"


async def test_dead_letters_can_be_requeued(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    first, second = await admit(queue), await admit(queue, 3, timeout_s=100.0, least_s=1.0, result_bytes=1000)
    for lease in await claim(leases, num_samples=4):
        await leases.fail(lease, JobError(code="engine_error", message=""))
    dead = await queue.dead_letters(MODEL, VERSION)
    assert {job.id for job in dead} == {first.id, second.id}
    again = await queue.requeue(await stored(queue, second.id))
    assert (again.spec, again.state, again.attempt) == (second.spec, JobState.QUEUED, 0)
    assert [job.id for job in await queue.dead_letters(MODEL, VERSION)] == [first.id]
    assert again.terms == second.terms
    assert await redis.get(RESERVED) == b"1000", "its result is reserved again"
    assert ids(await claim(leases)) == [again.id]


async def test_all_jobs_of_a_dead_worker_are_taken_back(queue: JobQueue, leases: Leases, dying: Leases) -> None:
    for _ in range(100):
        await admit(queue, timeout_s=600.0)
    for returns in (leases.sweep, lambda: leases.reclaim("dead")):
        owner = dying if returns == leases.sweep else leases
        while await claim(owner, "dead", 100):
            pass
        assert await returns() == SweepResult(num_requeued=100)
    assert (await queue.depth(MODEL, VERSION)).num_jobs_queued == 100


async def test_images_of_many_bytes_are_stored_in_pieces(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    images = [bytes([index]) * 1_000_000 for index in range(7)]
    first, second = await admit(queue, 7), await admit(queue, 7)
    stale, lost = await claim(Leases(redis, lease_s=0.0), "dead", num_samples=14)
    await call_all(redis, leases._finish_commands(JobEnd(stale, JobState.SUCCEEDED, TIMINGS, images))[:2])
    assert await queue.read(first.id) == (await stored(queue, first.id), []), "nobody sees some of them"
    await leases.sweep()
    assert not await leases.succeed(lost, images, TIMINGS)
    [again, other] = await claim(leases, num_samples=14)
    assert await leases.finish_many(
        [JobEnd(again, JobState.SUCCEEDED, TIMINGS, images), JobEnd(other, JobState.SUCCEEDED, TIMINGS, images[:1])]
    ) == [True, True]
    assert await images_of(queue, first.id) == images
    assert await images_of(queue, second.id) == images[:1]


async def test_a_dead_workers_many_jobs_are_all_taken_back(queue: JobQueue, leases: Leases) -> None:
    for _ in range(100):
        await admit(queue)
    num_claimed = 0
    while claims := await claim(leases, "dead", num_samples=100):
        num_claimed += len(claims)
    assert num_claimed == 100
    assert await leases.reclaim("another") == SweepResult()
    assert await leases.reclaim("dead") == SweepResult(num_requeued=100)


async def test_running_jobs_that_could_not_start_any_more_do_not_keep_sweeps_busy(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    """They have started; only if they are queued again does their deadline to start count again."""
    for _ in range(40):
        await admit(queue, timeout_s=100.0)
    running: list[Claim] = []
    while claims := await claim(leases, "dying", num_samples=100):
        running += claims
    deadlines = f"{QueueKeys.of(MODEL, VERSION).prefix}deadlines"
    await redis.zadd(deadlines, dict.fromkeys(ids(running), 1.0))
    async with asyncio.timeout(20):
        assert await leases.sweep() == SweepResult()
    assert await leases.reclaim("dying") == SweepResult(num_requeued=40)
    assert await redis.zcard(deadlines) == 40
