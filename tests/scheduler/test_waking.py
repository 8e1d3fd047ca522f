"""Workers that wait for work: any work, or newcomers alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from msf_scheduler.jobs import Priority
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from tests.scheduler.support import MODEL, VERSION, Lane, admit, claim, ids, try_claim, until_blocked

MODELS = [(MODEL, VERSION)]


async def test_an_arrival_wakes_one_worker(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    models = [(MODEL, VERSION), ("letters", VERSION)]
    waiting = [asyncio.create_task(leases.wait_for_work(models, (), 60)) for _ in range(4)]
    await until_blocked(redis, 4)
    await admit(queue)
    async with asyncio.timeout(4):  # sooner than the longest wait
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await until_blocked(redis, 3)
    for task in waiting:
        task.cancel()


async def test_a_claim_that_leaves_work_wakes_the_next(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    await admit(queue)
    async with asyncio.timeout(4):
        await leases.wait_for_work([(MODEL, VERSION)], (), 60)
        await claim(leases)
        await leases.wait_for_work([(MODEL, VERSION)], (), 60)


async def test_a_sweep_replaces_the_wake_token_of_a_dead_worker(queue: JobQueue, leases: Leases) -> None:
    await admit(queue)
    async with asyncio.timeout(4):
        await leases.wait_for_work([(MODEL, VERSION)], (), 60)
        await leases.sweep()
        await leases.wait_for_work([(MODEL, VERSION)], (), 60)


async def test_work_between_claim_and_wait_is_not_missed(queue: JobQueue, leases: Leases, dying: Leases) -> None:
    models = [(MODEL, VERSION)]

    async def wakes_at_once() -> None:
        async with asyncio.timeout(4):
            await leases.wait_for_work(models, (), 60)

    job = await admit(queue)
    await wakes_at_once()  # never claimed
    await admit(queue)
    [lease] = await claim(leases)
    await wakes_at_once()  # claimed, but not all
    await claim(leases)
    await leases.release(lease)
    await wakes_at_once()
    [lease] = await claim(dying)
    assert await claim(leases) == []
    await leases.sweep()
    await wakes_at_once()
    assert ids(await claim(leases)) == [job.id]


async def test_waiting_ends_at_the_timeout(queue: JobQueue, leases: Leases) -> None:
    await claim(leases)
    async with asyncio.timeout(4):
        await leases.wait_for_work([(MODEL, VERSION)], (), 0.01)
        await leases.wait_for_work([(MODEL, VERSION)], (), 0)


def lane(tenant: str, priority: Priority = Priority.NORMAL) -> Lane:
    return priority, tenant


async def claim_full(leases: Leases, *held: str, max_samples: int = 100) -> list[str]:
    """Claim for a worker whose budget is used up."""
    lanes = [lane(tenant) for tenant in held]
    return ids((await try_claim(leases, "full", 0, held=lanes, max_samples=max_samples, idle=False)).claims)


async def returns_at_once(leases: Leases) -> None:
    async with asyncio.timeout(4):  # sooner than the longest wait
        await leases.wait_for_work((), MODELS, 60)


@asynccontextmanager
async def waiting(redis: Redis, *workers: Leases) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Let full workers wait."""
    tasks = [asyncio.create_task(leases.wait_for_work((), MODELS, 60)) for leases in workers]
    await until_blocked(redis, len(tasks))
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_full_worker_wakes_for_newcomers_alone(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    await admit(queue, tenant="a")
    await admit(queue, tenant="a")
    assert len(await claim_full(leases)) == 1
    async with waiting(redis, leases) as [task]:
        await admit(queue, tenant="a")  # has a backlog
        await until_blocked(redis, 1)
        assert not task.done()
        newcomer = await admit(queue, tenant="b")
        async with asyncio.timeout(4):
            await task
    assert await claim_full(leases, "a") == [newcomer.id]
    other = await admit(queue, tenant="b", priority=Priority.HIGH)
    await returns_at_once(leases)
    assert await claim_full(leases, "a", "b") == [other.id]


async def test_a_worker_that_holds_the_tenant_passes_the_newcomer_on(queue: JobQueue, redis: Redis) -> None:
    workers = [Leases(redis) for _ in range(3)]
    for leases in workers:
        await claim_full(leases, "a")
    async with waiting(redis, *workers) as tasks:
        job = await admit(queue, tenant="a")
        for remaining in (2, 1):  # the two that were asked hold the tenant
            async with asyncio.timeout(4):
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await until_blocked(redis, remaining)
            [task] = [task for task in tasks if task.done()]
            assert await claim_full(workers.pop(tasks.index(task)), "a") == []
            tasks.remove(task)
        async with asyncio.timeout(4):
            await tasks[0]
    assert await claim_full(workers[0]) == [job.id]


async def test_a_newcomer_that_all_hold_wakes_each_once(queue: JobQueue, redis: Redis) -> None:
    workers = [Leases(redis) for _ in range(2)]
    for leases in workers:
        await claim_full(leases, "a")
    await admit(queue, tenant="a")
    for leases in workers:
        await returns_at_once(leases)
        assert await claim_full(leases, "a") == []
    async with waiting(redis, *workers) as tasks:
        await admit(queue, tenant="a")
        await Leases(redis).sweep()
        await until_blocked(redis, 2)
        assert not any(task.done() for task in tasks)


async def test_a_newcomer_goes_to_another_worker_if_the_one_it_woke_has_died(queue: JobQueue, redis: Redis) -> None:
    dead, alive = Leases(redis), Leases(redis)
    await claim_full(dead)
    await claim_full(alive)
    job = await admit(queue, tenant="a")
    await returns_at_once(dead)
    await alive.sweep()
    await returns_at_once(alive)
    assert await claim_full(alive) == [job.id]


async def test_more_newcomers_than_one_claim_takes_are_claimed_without_another_wake(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    jobs = [await admit(queue, tenant=f"tenant {number}") for number in range(12)]
    first = await claim_full(leases)
    assert 0 < len(first) < len(jobs)
    await returns_at_once(leases)
    lanes = [f"tenant {number}" for number, job in enumerate(jobs) if job.id in first]
    assert {*first, *await claim_full(leases, *lanes)} == {job.id for job in jobs}
    async with waiting(redis, leases) as [task]:
        assert not task.done()


async def test_a_worker_without_room_does_not_spin(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    """Its next job does not fit, so work alone is no reason to claim again."""
    big, small = await admit(queue, 8, tenant="a"), await admit(queue, tenant="a")
    assert (await try_claim(leases, "w", 100, held=[lane("a")], max_samples=4, idle=False)).claims == ()
    task = asyncio.create_task(leases.wait_for_work(MODELS, (), 60))
    await until_blocked(redis, 1)
    newcomer = await admit(queue, tenant="b")
    async with asyncio.timeout(4):
        await task
    result = await try_claim(leases, "w", 100, held=[lane("a")], max_samples=4, idle=False)
    assert ids(result.claims) == [newcomer.id]
    assert ids((await try_claim(leases, "w", 100, held=(), max_samples=9, idle=False)).claims) == [big.id, small.id]


async def test_a_model_that_became_full_without_a_claim_is_claimed_from_first(queue: JobQueue, leases: Leases) -> None:
    """Another model used the budget up after this model's last claim found nothing."""
    assert await claim(leases) == []
    job = await admit(queue)
    await returns_at_once(leases)
    assert await claim_full(leases) == [job.id]
