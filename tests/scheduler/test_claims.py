"""Bounds of a claim: sample steps, memory, and one job of each newcomer; several claims and ends in one write."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from msf_scheduler.claims import EXPIRED, ClaimRequest, JobEnd
from msf_scheduler.jobs import JobError, JobState, Priority
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from tests.scheduler.support import (
    MODEL,
    TIMINGS,
    VERSION,
    Lane,
    admit,
    claim,
    ids,
    images_of,
    spec,
    stored,
    try_claim,
)

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


async def test_whole_jobs_are_claimed_while_they_cost_less_than_the_budget(queue: JobQueue, leases: Leases) -> None:
    jobs = [await admit(queue, num_samples, num_steps=20) for num_samples in (1, 2, 1, 50, 1)]
    for budget_steps, expected in ((21, jobs[:2]), (20, jobs[2:3]), (1, jobs[3:4]), (0, [])):
        result = await leases.claim(
            "w", MODEL, VERSION, budget_steps=budget_steps, held=[(NORMAL, "")], max_samples=100, idle=False
        )
        assert ids(result.claims) == [job.id for job in expected]
    depth = await queue.depth(MODEL, VERSION)
    assert (depth.num_jobs_queued, depth.num_jobs_running, depth.num_samples) == (1, 4, 55)


async def claimed(leases: Leases, num_samples: int, held: list[Lane], max_samples: int = 100) -> list[str]:
    return ids((await try_claim(leases, "w", num_samples, held=held, max_samples=max_samples, idle=False)).claims)


async def test_a_backlog_does_not_keep_newcomers_out_of_a_full_worker(queue: JobQueue, leases: Leases) -> None:
    backlog = [await admit(queue, 64, tenant="a", num_steps=100, priority=LOW) for _ in range(3)]
    assert ids(await claim(leases, "w")) == [backlog[0].id]
    lanes = [(LOW, "a")]
    assert await claimed(leases, 0, lanes) == []
    high, normal = [await admit(queue, tenant="b", priority=priority) for priority in (HIGH, NORMAL)]
    again, own = await admit(queue, tenant="b", priority=HIGH), await admit(queue, tenant="a", priority=HIGH)
    assert await claimed(leases, 0, lanes) == [high.id, own.id, normal.id]
    assert await claimed(leases, 0, [*lanes, (HIGH, "b"), (HIGH, "a"), (NORMAL, "b")]) == []
    assert await claimed(leases, 0, [*lanes, (HIGH, "a"), (NORMAL, "b")]) == [again.id]


async def test_a_worker_that_holds_jobs_of_many_tenants_gets_newcomers_of_other_classes_alone(
    queue: JobQueue, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("msf_scheduler.leases.MAX_HELD_LANES", 2)
    await admit(queue, tenant="c")
    low = await admit(queue, tenant="c", priority=LOW)
    lanes = [(NORMAL, "a"), (NORMAL, "b")]
    assert await claimed(leases, 0, [*lanes, (NORMAL, "d")]) == [low.id]
    assert len(await claimed(leases, 0, lanes)) == 1


async def test_what_many_tenants_have_used_is_forgotten_in_pieces(
    queue: JobQueue, leases: Leases, redis: Redis
) -> None:
    passes = f"{QueueKeys.of(MODEL, VERSION).prefix}passes"
    for number in range(100, 200):
        await admit(queue, tenant=f"tenant-{number}")
    for _ in range(6):
        await admit(queue, 10, tenant="zero")
    while await redis.zcard(passes) < 101:
        await claim(leases, num_samples=1)
    await claim(leases, num_samples=10)  # the virtual time passes what each of them has used
    num_left = await redis.zcard(passes)
    assert 1 < num_left < 101
    assert await redis.zscore(passes, "tenant-199") is not None
    for tenant in ("tenant-199", "new") * 2:
        await admit(queue, 10, tenant=tenant)
    order = [each.job.terms.tenant for _ in range(6) for each in await claim(leases, num_samples=1)]
    assert [tenant for tenant in order if tenant != "zero"][:2] == ["new", "tenant-199"]
    assert await redis.zcard(passes) < num_left


async def test_newcomers_come_after_the_jobs_that_the_budget_covers(queue: JobQueue, leases: Leases) -> None:
    first = await admit(queue, 2, tenant="a", priority=HIGH)
    await admit(queue, tenant="a", priority=HIGH)
    other = await admit(queue, tenant="b", priority=LOW)
    assert await claimed(leases, 2, []) == [first.id, other.id]


async def test_newcomers_are_charged(queue: JobQueue, leases: Leases) -> None:
    for _ in range(2):
        await admit(queue, 4, tenant="a")
    assert len(await claimed(leases, 0, [])) == 1
    for _ in range(5):
        await admit(queue, tenant="b")
    tenants = [lease.job.terms.tenant for _ in range(6) for lease in await claim(leases)]
    assert tenants == [*"bbbb", "a", "b"], "until both have had four samples"


async def test_only_a_first_job_of_an_idle_worker_exceeds_its_memory(queue: JobQueue, leases: Leases) -> None:
    big, small = await admit(queue, 8, tenant="a"), await admit(queue, 2, tenant="b")
    await admit(queue, 3, tenant="d")
    assert await claimed(leases, 100, [], max_samples=4) == [small.id], "what fits, and no more"
    result = await try_claim(leases, "w", 100, held=(), max_samples=4, idle=True)
    assert ids(result.claims) == [big.id]
    assert await claimed(leases, 100, [], max_samples=0) == []


async def test_one_claim_is_bounded_and_leaves_the_rest(queue: JobQueue, leases: Leases, redis: Redis) -> None:
    """However much work is queued, no script runs long."""
    jobs = [await admit(queue) for _ in range(12)]
    first = await claimed(leases, 1000, [], max_samples=1000)
    assert 0 < len(first) < 12
    await leases.wait_for_work([(MODEL, VERSION)], (), 60)
    assert [*first, *await claimed(leases, 1000, [], max_samples=1000)] == [job.id for job in jobs]


async def test_several_jobs_end_in_one_call(queue: JobQueue, leases: Leases) -> None:
    for _ in range(4):
        await admit(queue)
    claims = await claim(leases, num_samples=4)
    await leases.release(claims[2])
    error = JobError(code="non_finite", message="sample 0 became NaN")
    ends = [
        JobEnd(claims[0], JobState.SUCCEEDED, TIMINGS, [b"image"]),
        JobEnd(claims[1], JobState.FAILED, error),
        JobEnd(claims[2], JobState.SUCCEEDED, TIMINGS, [b"late"]),
        JobEnd(claims[3], JobState.EXPIRED, EXPIRED),
    ]
    assert await leases.finish_many(ends) == [True, True, False, True]
    assert await leases.finish_many(ends) == [False] * 4
    states = [(await stored(queue, lease.job.id)).state for lease in claims]
    assert states == [JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED, JobState.EXPIRED]
    assert await images_of(queue, claims[0].job.id) == [b"image"]


async def test_several_models_are_claimed_from_in_one_call(queue: JobQueue, leases: Leases) -> None:
    mine = await admit(queue)
    other = await queue.admit(spec(model="letters"), job_id="other", reply_to=None)
    models = [(MODEL, VERSION), ("letters", VERSION)]
    requests = [ClaimRequest(model, budget_steps=100, held=(), max_samples=9) for model in models]
    results = await leases.claim_many("w", requests, idle=False)
    assert [ids(result.claims) for result in results] == [[mine.id], [other.id]]


async def test_an_idle_worker_gets_a_suspect_of_one_model_and_nothing_of_others(
    queue: JobQueue, leases: Leases
) -> None:
    suspect = await admit(queue)
    for _ in range(2):
        await claim(leases, "victim")
        await leases.reclaim("victim")
    big = await queue.admit(spec(8, model="letters"), job_id="other", reply_to=None)
    models = [(MODEL, VERSION), ("letters", VERSION)]
    requests = [ClaimRequest(model, budget_steps=100, held=(), max_samples=4) for model in models]
    results = await leases.claim_many("w", requests, idle=True)
    assert [(ids(result.claims), result.alone) for result in results] == [([suspect.id], True), ([], False)]
    [result] = await leases.claim_many("other", requests[1:], idle=True)
    assert ids(result.claims) == [big.id]
