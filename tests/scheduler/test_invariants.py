"""Random interleavings of all transitions: whatever happens, what a user relies on holds at every moment."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from msf_serve.scheduler.errors import QueueFull
from msf_serve.scheduler.jobs import JobError, JobState, Priority, Terms
from msf_serve.scheduler.keys import RESERVED
from msf_serve.scheduler.leases import Claim, Leases
from msf_serve.scheduler.queue import JobQueue, QueueDepth
from tests.scheduler.support import MODEL, TIMINGS, VERSION, queue_keys, replies, spec

LIMIT = 16
BYTES_PER_SAMPLE = 10
WORKERS = ("a", "b", "c")
OPERATIONS = ("admit",) * 4 + ("claim",) * 3 + ("succeed", "fail", "release", "renew", "cancel", "sweep", "bury")


@dataclass
class Play:
    """One random run. `admitted` maps ids to samples, `held` what each worker was given and has not yet lost."""

    redis: Redis
    dice: random.Random
    admitted: dict[str, int] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)  # all that were ever given, stale ones too
    cached: set[str] = field(default_factory=set)  # jobs that were answered at admission
    num_stored: Counter[str] = field(default_factory=Counter)  # accepted results by job

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis, max_queued_samples=LIMIT)
        self.leases = Leases(self.redis)
        self.dying = Leases(self.redis, lease_s=0.0)

    async def admit(self) -> None:
        job_id, num_samples = f"job-{len(self.admitted)}", self.dice.randint(1, 4)
        terms = Terms(
            priority=self.dice.choice(list(Priority)),
            tenant=self.dice.choice("xyz"),
            user=self.dice.choice(("", "u", "v")),
            weight=self.dice.choice((1.0, 2.5)),
            timeout_s=self.dice.choice((None, 1000.0, 1e-4)),
        )
        before = await self.num_samples()
        try:
            job = await self.queue.admit(
                spec(num_samples, seed=self.dice.randint(0, 2)),
                terms,
                job_id=job_id,
                reply_to="replies",
                plan=self.dice.choice((None, "plan")),
                result_bytes=BYTES_PER_SAMPLE * num_samples,
            )
        except QueueFull:
            assert before + num_samples > LIMIT
        else:
            self.admitted[job.id] = num_samples
            if job.state.is_terminal:
                self.cached.add(job.id)

    async def claim(self) -> None:
        leases = self.dying if self.dice.random() < 0.2 else self.leases
        worker_id, max_samples, idle = self.dice.choice(WORKERS), self.dice.randint(0, 6), self.dice.random() < 0.5
        claimed = await leases.claim(worker_id, MODEL, VERSION, max_samples, idle=idle)
        for held in claimed.claims:
            assert held.job.state is JobState.RUNNING
            assert not held.job.is_suspect or (claimed.alone and idle and len(claimed.claims) == 1)
        self.claims += claimed.claims

    async def succeed(self) -> None:
        if self.claims:
            held = self.dice.choice(self.claims)
            images = [held.job.id.encode()] * held.job.spec.num_samples
            self.num_stored[held.job.id] += await self.leases.succeed(held, images, TIMINGS, plan="plan")

    async def fail(self) -> None:
        if self.claims:
            held = self.dice.choice(self.claims)
            self.num_stored[held.job.id] += await self.leases.fail(held, JobError(code="broken", message=""))

    async def release(self) -> None:
        if self.claims:
            await self.leases.release(self.dice.choice(self.claims))

    async def renew(self) -> None:
        worker_id = self.dice.choice(WORKERS)
        mine = [held for held in self.claims if held.worker_id == worker_id]
        lost = await self.leases.renew(worker_id, mine)
        kept = [held.job.id for held in mine if held.job.id not in lost]
        assert len(kept) == len(set(kept))

    async def cancel(self) -> None:
        if self.admitted:
            job_id = self.dice.choice(list(self.admitted))
            state = await self.queue.cancel(job_id)
            assert state is not None
            assert state.is_terminal

    async def sweep(self) -> None:
        await self.leases.sweep()

    async def bury(self) -> None:
        await self.leases.bury(self.dice.choice(WORKERS))

    async def num_samples(self) -> int:
        return (await self.queue.depth(MODEL, VERSION)).num_samples

    async def check(self) -> None:
        """Counters are exact, nobody's result was stored twice, and what has ended stays ended."""
        open_samples = reserved = 0
        for job_id, num_samples in self.admitted.items():
            state, leader = await self.redis.hmget(f"msf:job:{job_id}", "state", "leader")
            if state in (b"queued", b"running") and leader is None:
                open_samples += num_samples
                reserved += BYTES_PER_SAMPLE * num_samples
        assert await self.num_samples() == open_samples
        assert int(await self.redis.get(RESERVED) or 0) == reserved
        assert not self.num_stored or max(self.num_stored.values()) <= 1

    async def finish_all(self) -> None:
        while (await self.queue.depth(MODEL, VERSION)).num_jobs_queued:
            await self.leases.sweep()
            for held in (await self.leases.claim("last", MODEL, VERSION, LIMIT, idle=True)).claims:
                assert await self.leases.succeed(held, [b"image"] * held.job.spec.num_samples, TIMINGS)
        for job_id in self.admitted:
            await self.queue.cancel(job_id)


@pytest.mark.parametrize("seed", range(8))
async def test_what_must_always_hold(redis: Redis, seed: int) -> None:
    play = Play(redis, random.Random(seed))
    for _ in range(200):
        await getattr(play, play.dice.choice(OPERATIONS))()
        await play.check()
    await play.finish_all()
    await play.check()

    assert await play.queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0.0)
    assert await queue_keys(redis) <= {"counters", "wake", "ends", "dead"}
    ends = Counter(job_id for job_id, _ in await replies(redis))
    assert ends == dict.fromkeys(play.admitted.keys() - play.cached, 1), "every accepted job has one end"
    for job_id, num_samples in play.admitted.items():
        record = await play.queue.get(job_id)
        assert record is not None
        assert record.state.is_terminal
        has_images = record.state is JobState.SUCCEEDED
        assert len(await play.queue.images(record)) == (num_samples if has_images else 0)
