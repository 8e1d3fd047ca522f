"""Order of service: priorities, tenants and their users."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from msf_scheduler.claims import Claim
from msf_scheduler.jobs import Priority
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from tests.scheduler.support import MODEL, VERSION, admit, claim, ids, queue_keys

COUNTERS = f"{QueueKeys.of(MODEL, VERSION).prefix}counters"
HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW


async def in_turn(leases: Leases, count: int) -> list[Claim]:
    return [lease for _ in range(count) for lease in await claim(leases)]


async def test_a_flood_does_not_delay_another_tenants_first_job(queue: JobQueue, leases: Leases) -> None:
    for _ in range(1000):
        await admit(queue, tenant="flood")
    await in_turn(leases, 100)
    first = await admit(queue, tenant="newcomer")
    assert first.id in ids(await in_turn(leases, 2))


async def test_tenants_share_by_weight_and_cost(queue: JobQueue, leases: Leases) -> None:
    """Three times the weight gets three times the sample steps, whatever the size of the jobs."""
    for _ in range(60):
        await admit(queue, 4, tenant="heavy", weight=3.0, num_steps=20)
    for _ in range(400):
        await admit(queue, 1, tenant="light", num_steps=10)
    served: Counter[str] = Counter()
    for lease in await in_turn(leases, 140):
        spec = lease.job.spec
        served[lease.job.terms.tenant] += spec.num_samples * spec.num_steps
    assert served["heavy"] / served["light"] == pytest.approx(3, rel=0.15)


async def test_an_idle_tenant_earns_no_credit(queue: JobQueue, leases: Leases) -> None:
    await admit(queue, tenant="sleeper")
    for _ in range(50):
        await admit(queue, tenant="busy")
    await in_turn(leases, 41)
    for _ in range(10):
        await admit(queue, tenant="sleeper")
    tenants = [lease.job.terms.tenant for lease in await in_turn(leases, 8)]
    assert Counter(tenants) == {"sleeper": 4, "busy": 4}


async def test_the_users_of_a_tenant_take_turns(queue: JobQueue, leases: Leases) -> None:
    for user, count in (("ann", 20), ("bob", 2), ("eve", 2)):
        for _ in range(count):
            await admit(queue, tenant="team", user=user)
    await admit(queue, tenant="other")
    claims = await in_turn(leases, 9)
    assert sum(lease.job.terms.tenant == "other" for lease in claims) == 1
    assert Counter(lease.job.terms.user for lease in claims if lease.job.terms.user) == {"ann": 4, "bob": 2, "eve": 2}


async def test_cancelled_and_released_jobs_are_not_charged(queue: JobQueue, leases: Leases) -> None:
    cancelled = [await admit(queue, 8, tenant="a") for _ in range(5)]
    theirs = [await admit(queue, tenant="a") for _ in range(3)]
    for _ in range(3):
        await admit(queue, tenant="b")
    [given_back] = await claim(leases)
    await leases.release(given_back)
    for job in cancelled:
        await queue.cancel(job.id)
    claims = await in_turn(leases, 6)
    assert [lease.job.id for lease in claims if lease.job.terms.tenant == "a"] == [job.id for job in theirs]
    assert sorted(lease.job.terms.tenant for lease in claims[:2]) == ["a", "b"]


async def test_higher_priorities_go_first(queue: JobQueue, leases: Leases) -> None:
    admitted = {
        priority: [await admit(queue, priority=priority, tenant=tenant) for tenant in "ab"]
        for priority in (LOW, NORMAL, HIGH)
    }
    claims = await in_turn(leases, 6)
    assert [lease.job.terms.priority for lease in claims] == [HIGH, HIGH, NORMAL, NORMAL, LOW, LOW]
    assert sorted(ids(claims)) == sorted(job.id for jobs in admitted.values() for job in jobs)


async def passed_over(redis: Redis, priority_class: int, seconds: float) -> None:
    """Let the class seem to have waited `seconds` longer."""
    since = float(await redis.hget(COUNTERS, f"served_at:{priority_class}") or 0)
    await redis.hset(COUNTERS, f"served_at:{priority_class}", since - seconds)


async def test_waiting_raises_a_lower_priority_again_and_again(redis: Redis, queue: JobQueue, leases: Leases) -> None:
    for priority in (HIGH, NORMAL, LOW):
        for _ in range(10):
            await admit(queue, priority=priority)
    served = []
    for _ in range(5):
        await passed_over(redis, 2, 11)  # two levels up
        served += [lease.job.terms.priority for lease in await in_turn(leases, 3)]
    assert served == 5 * [LOW, HIGH, HIGH]


async def test_ageing_keeps_the_order_of_a_stalled_queue(redis: Redis, queue: JobQueue, leases: Leases) -> None:
    """All classes of a stalled queue age alike."""
    for priority in (LOW, NORMAL, HIGH):
        await admit(queue, priority=priority)
    for priority_class in (0, 1, 2):
        await passed_over(redis, priority_class, 60)
    assert [lease.job.terms.priority for lease in await in_turn(leases, 3)] == [HIGH, NORMAL, LOW]


async def test_tenants_without_jobs_leave_no_keys(redis: Redis, queue: JobQueue, leases: Leases) -> None:
    for number in range(20):
        await admit(queue, tenant=f"tenant {number % 5}:x", user=f"user:{number}", priority=list(Priority)[number % 3])
    await in_turn(leases, 20)
    assert await queue_keys(redis) == {"counters", "leases"}
