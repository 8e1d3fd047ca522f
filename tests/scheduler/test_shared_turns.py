"""Turns of shared work: identical jobs are run when the first of those that wait for them would be served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.claims import Claim, SweepResult
from msf_scheduler.errors import MemoryFull, QueueFull
from msf_scheduler.jobs import JobRecord, JobState, Priority, Provenance, Terms
from msf_scheduler.leases import Leases
from msf_scheduler.notices import notices
from msf_scheduler.queue import Idempotency, JobQueue, QueueDepth, new_job_id
from msf_scheduler.scripts import Script
from tests.scheduler.support import MODEL, TIMINGS, VERSION, claim, ids, images_of, queue_keys, spec, stored, try_claim

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW
PROVENANCE = Provenance(fingerprint="plan", reproducibility="fast")


async def ask(
    queue: JobQueue,
    tenant: str,
    seed: int,
    *,
    priority: Priority = NORMAL,
    weight: float = 1.0,
    timeout_s: float | None = None,
    idempotency: Idempotency | None = None,
    result_bytes: int = 100,
) -> JobRecord:
    terms = Terms(tenant=tenant, priority=priority, weight=weight, timeout_s=timeout_s)
    return await queue.admit(
        spec(seed=seed),
        terms,
        job_id=new_job_id(),
        reply_to=None,
        fingerprint="plan",
        result_bytes=result_bytes,
        idempotency=idempotency,
    )


async def backlog(queue: JobQueue, tenant: str = "a", count: int = 8) -> list[JobRecord]:
    return [await ask(queue, tenant, seed) for seed in range(count)]


async def succeed(leases: Leases, lease: Claim) -> None:
    assert await leases.succeed(lease, [b"image"], TIMINGS, PROVENANCE)


async def in_turn(leases: Leases, count: int) -> list[Claim]:
    return [lease for _ in range(count) for lease in await claim(leases)]


async def raised(redis: Redis, worker_id: str = "worker-1") -> Mapping[str, Terms]:
    """Return what the worker's stream holds."""
    if not await redis.exists(f"{keys.NOTICES}{worker_id}"):
        return {}
    async with asyncio.timeout(4):
        return (await anext(aiter(notices(redis, worker_id)))).raised


async def test_work_in_a_backlog_is_run_when_it_is_the_turn_of_another_waiter(queue: JobQueue, leases: Leases) -> None:
    theirs = await backlog(queue)
    mine = await ask(queue, "b", seed=7, weight=2.0)
    first, second = await in_turn(leases, 2)
    assert ids([first, second]) == [theirs[0].id, theirs[7].id]
    assert (second.job.terms.tenant, second.job.terms.weight) == ("b", 2.0)
    await succeed(leases, second)
    assert await images_of(queue, mine.id) == [b"image"]
    assert ids(await in_turn(leases, 7)) == [job.id for job in theirs[1:7]], "and it is out of the backlog"


async def test_shared_work_is_charged_to_the_waiter_whose_turn_it_was(queue: JobQueue, leases: Leases) -> None:
    await backlog(queue)
    await ask(queue, "b", seed=7)
    await in_turn(leases, 2)
    for seed in (20, 21):
        await ask(queue, "b", seed)
    assert sorted(lease.job.terms.tenant for lease in await in_turn(leases, 2)) == ["a", "b"]


async def test_a_higher_priority_of_a_waiter_holds_for_shared_work(queue: JobQueue, leases: Leases) -> None:
    low = await ask(queue, "a", 1, priority=LOW)
    normal = await ask(queue, "a", 2)
    await ask(queue, "b", 1, priority=HIGH)
    await ask(queue, "c", 1, priority=LOW)
    claims = await in_turn(leases, 2)
    assert ids(claims) == [low.id, normal.id]
    assert claims[0].job.terms.priority is HIGH


async def test_a_full_worker_runs_the_shared_work_of_a_newcomer(queue: JobQueue, leases: Leases) -> None:
    theirs = await backlog(queue)
    await in_turn(leases, 1)
    await ask(queue, "b", seed=7)
    result = await try_claim(leases, "worker-1", 0, idle=False, held=[(NORMAL, "a")])
    assert [(lease.job.id, lease.job.terms.tenant) for lease in result.claims] == [(theirs[7].id, "b")]


async def test_a_running_job_is_raised_when_the_turn_of_a_better_waiter_comes(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    job = await ask(queue, "a", 1, weight=2.0)
    assert ids(await claim(leases)) == [job.id]
    for terms in (("b", LOW, 9.0), ("b", NORMAL, 1.0), ("a", NORMAL, 1.0)):
        tenant, priority, weight = terms
        await ask(queue, tenant, 1, priority=priority, weight=weight)
        assert await claim(leases, "worker-2") == []
        assert await raised(redis) == {}, terms
    for tenant, priority, weight in (("b", NORMAL, 2.0), ("b", HIGH, 1.0)):
        await ask(queue, tenant, 1, priority=priority, weight=weight)
        assert await claim(leases, "worker-2") == []
        terms_of_job = (await raised(redis))[job.id]
        assert (terms_of_job.tenant, terms_of_job.priority, terms_of_job.weight) == (tenant, priority, weight)
    assert (await queue_keys(redis)) <= {"counters", "leases", "full"}, "no turn is left"


async def test_the_turn_of_a_running_job_costs_its_waiter_nothing(queue: JobQueue, leases: Leases) -> None:
    await ask(queue, "a", 1)
    await claim(leases)
    for seed in (11, 12):
        await ask(queue, "c", seed)
    await ask(queue, "b", 1)
    await ask(queue, "b", 13)
    assert sorted(lease.job.terms.tenant for lease in await in_turn(leases, 2)) == ["b", "c"]


@pytest.mark.parametrize("end", ["release", "reclaim"])
async def test_returned_shared_work_waits_for_the_turns_of_all_again(queue: JobQueue, leases: Leases, end: str) -> None:
    theirs = await backlog(queue)
    await ask(queue, "b", seed=7)
    await ask(queue, "c", seed=7)
    claims = await in_turn(leases, 3)
    assert ids(claims)[1] == theirs[7].id
    await (leases.release(claims[1]) if end == "release" else leases.reclaim("worker-1"))
    await ask(queue, "b", seed=20)
    again = await in_turn(leases, 3)
    assert theirs[7].id in ids(again)
    assert {lease.job.terms.tenant for lease in again if lease.job.id == theirs[7].id} <= {"b", "c"}


@pytest.mark.parametrize("is_running", [False, True], ids=["queued", "running"])
async def test_cancelling_the_first_request_leaves_the_work_to_the_others(
    queue: JobQueue, leases: Leases, is_running: bool
) -> None:
    theirs = await backlog(queue)
    followers = [await ask(queue, tenant, seed=7) for tenant in "bc"]
    if is_running:
        assert theirs[7].id in ids(await in_turn(leases, 2))
    await queue.cancel(theirs[7].id)
    claims = await in_turn(leases, 3)
    [lease] = [lease for lease in claims if lease.job.spec.seed == 7]
    assert (lease.job.id, lease.job.terms.tenant) == (followers[0].id, "b")
    await succeed(leases, lease)
    assert await images_of(queue, followers[1].id) == [b"image"]


async def test_the_turn_of_a_waiter_that_was_cancelled_is_gone(queue: JobQueue, leases: Leases) -> None:
    theirs = await backlog(queue, count=3)
    mine = await ask(queue, "b", seed=2)
    await queue.cancel(mine.id)
    assert ids(await in_turn(leases, 3)) == [job.id for job in theirs]


async def test_a_deadline_ends_its_own_request_alone(queue: JobQueue, leases: Leases) -> None:
    first = await ask(queue, "a", 1, timeout_s=1e-6)
    second, third = await ask(queue, "b", 1), await ask(queue, "c", 1, timeout_s=1e-6)
    result = await try_claim(leases, "worker-1", 1, idle=True)
    assert (ids(result.claims), result.num_expired) == ([second.id], 1)
    assert await leases.sweep() == SweepResult(num_expired=1)
    await succeed(leases, result.claims[0])
    states = [(await stored(queue, job.id)).state for job in (first, second, third)]
    assert states == [JobState.EXPIRED, JobState.SUCCEEDED, JobState.EXPIRED]


async def test_the_deaths_of_workers_count_for_the_work_and_not_for_the_request(
    queue: JobQueue, leases: Leases
) -> None:
    first = await ask(queue, "a", 1)
    second = await ask(queue, "b", 1)
    for _ in range(2):
        assert ids(await claim(leases)) == [first.id]
        await leases.reclaim("worker-1")
    await queue.cancel(first.id)
    assert await claim(leases) == [], "a suspect is not for a worker that holds other jobs"
    for _ in range(3):
        [lease] = (await try_claim(leases, "worker-1", 1, idle=True)).claims
        assert (lease.job.id, lease.job.is_suspect) == (second.id, True)
        swept = await leases.reclaim("worker-1")
    assert swept == SweepResult(num_poisoned=1)


async def test_a_waiter_of_a_suspect_is_not_leased_in_its_place(queue: JobQueue, leases: Leases) -> None:
    first = await ask(queue, "a", 1)
    for _ in range(2):
        await claim(leases)
        await leases.reclaim("worker-1")
    waiter = await ask(queue, "b", 1, priority=HIGH)
    assert await claim(leases) == []
    [lease] = (await try_claim(leases, "worker-1", 1, idle=True)).claims
    assert lease.job.id == first.id
    await succeed(leases, lease)
    assert await images_of(queue, waiter.id) == [b"image"]


async def test_those_who_watch_a_waiter_watch_the_job_that_takes_the_work_over(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    first, second, third = [await ask(queue, tenant, 1) for tenant in "abc"]
    await Script(redis, "watch")({"job": keys.job(third.id)}, id=third.id, reply_to="server")
    await queue.cancel(first.id)
    [lease] = await claim(leases)
    assert (lease.job.id, lease.job.is_watched) == (second.id, True)
    assert await redis.smembers(keys.job(second.id) + keys.WATCHERS) == {b"server"}


async def test_repeating_a_request_that_follows_another_returns_it(queue: JobQueue, leases: Leases) -> None:
    await ask(queue, "a", 1)
    key = Idempotency("key", b"body")
    follower = await ask(queue, "b", 1, idempotency=key)
    assert (await ask(queue, "b", 1, idempotency=key)).id == follower.id
    [lease] = await claim(leases)
    await succeed(leases, lease)
    assert (await ask(queue, "b", 1, idempotency=key)).state is JobState.SUCCEEDED


async def test_any_number_of_identical_jobs_is_run_once(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    jobs = [await ask(queue, "abc"[number % 3], 1) for number in range(100)]
    [lease, *_] = await claim(leases)
    assert lease.job.id == jobs[0].id
    await succeed(leases, lease)
    while (await queue.depth(MODEL, VERSION)).num_jobs_queued:
        assert await claim(leases) == []
    for job in jobs:
        assert await images_of(queue, job.id) == [b"image"]
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert await redis.get(keys.RESERVED) == b"0"


async def test_jobs_that_share_work_count_towards_the_queues_limit(redis: Redis, leases: Leases) -> None:
    queue = JobQueue(redis, max_queued_samples=3)
    for tenant in "abc":
        await ask(queue, tenant, 1)
    with pytest.raises(QueueFull):
        await ask(queue, "a", 1)
    [lease] = await claim(leases)
    await succeed(leases, lease)
    assert (await ask(queue, "a", 1)).state is JobState.SUCCEEDED


async def test_storage_is_checked_for_repeated_requests_too(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    await ask(queue, "a", 1)
    [lease] = await claim(leases)
    await succeed(leases, lease)
    await ask(queue, "a", 2)
    try:
        await redis.config_set("maxmemory", int((await redis.info("memory"))["used_memory"]) + 1_000_000)
        for seed in (1, 2, 3):
            with pytest.raises(MemoryFull):
                await ask(queue, "a", seed, result_bytes=2_000_000)
    finally:
        await redis.config_set("maxmemory", "1gb")
    assert (await ask(queue, "a", 1)).state is JobState.SUCCEEDED
