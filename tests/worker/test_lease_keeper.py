"""Terms that change while a claim is on its way, and room that becomes free."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.claims import Claim
from msf_scheduler.jobs import JobRecord, JobState, Priority, Terms
from msf_worker.lease_keeper import LeaseKeeper
from tests.polling import eventually
from tests.worker.support import SPEC

UNUSED = cast(Any, None)
URGENT = Terms(priority=Priority.HIGH, tenant="urgent", weight=2.0)


def claim_of(job_id: str) -> Claim:
    job = JobRecord(id=job_id, spec=SPEC, state=JobState.RUNNING, admitted_at=0.0, attempt=1)
    return Claim(job, "worker-1")


def keeper_of(redis: Redis) -> LeaseKeeper:
    models, device = SimpleNamespace(info=SimpleNamespace(id="worker-1")), SimpleNamespace(watched=frozenset())
    return LeaseKeeper(UNUSED, cast(Any, models), UNUSED, redis, UNUSED, cast(Any, device))


async def test_terms_that_overtake_a_claim_hold(redis: Redis) -> None:
    keeper = keeper_of(redis)
    heeding = asyncio.create_task(keeper.heed_notices())
    await redis.xadd(f"{keys.NOTICES}worker-1", {"job": "a", "terms": URGENT.model_dump_json()})
    await eventually(lambda: "a" in keeper.overtaking_terms)
    raised, other = keeper.hold([claim_of("a"), claim_of("b")])
    assert (raised.job.terms.priority, raised.job.terms.tenant) == (Priority.HIGH, "urgent")
    assert other.job.terms == Terms()
    assert keeper.let_go(raised)
    heeding.cancel()
    with suppress(asyncio.CancelledError):
        await heeding


async def test_a_worker_without_room_claims_again_when_a_job_has_ended(redis: Redis) -> None:
    keeper = keeper_of(redis)
    first, _ = keeper.hold([claim_of("a"), claim_of("b")])
    keeper.is_short_of_room = True
    assert keeper.let_go(first)
    assert keeper.work_wanted.is_set()
