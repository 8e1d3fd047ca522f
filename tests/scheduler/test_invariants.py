"""Random interleavings of all transitions, held against a model of the queue in plain Python."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from msf_serve.scheduler.connection import call
from msf_serve.scheduler.errors import QueueFull
from msf_serve.scheduler.jobs import JobError, JobState
from msf_serve.scheduler.queue import Claim, JobQueue, QueueDepth, Reclaimed
from tests.scheduler.support import MODEL, TIMINGS, VERSION, spec

LIMIT = 12
MAX_ATTEMPTS = 3
REPLIES = "replies"
WORKERS = ("a", "b", "c")
OPERATIONS = ("admit", "admit", "claim", "claim", "succeed", "fail", "release", "renew", "cancel", "reclaim")


@dataclass
class Job:
    id: str
    num_samples: int
    state: JobState = JobState.QUEUED
    attempt: int = 0
    worker_id: str = ""
    is_abandoned: bool = False  # its lease is over

    def is_held_by(self, claim: Claim) -> bool:
        lease = (self.state, self.worker_id, self.attempt)
        return lease == (JobState.RUNNING, claim.worker_id, claim.job.attempt)


@dataclass
class Model:
    """What the queue should be. Admission order is the order of `jobs`."""

    jobs: dict[str, Job] = field(default_factory=dict)

    def having(self, state: JobState) -> list[Job]:
        return [job for job in self.jobs.values() if job.state is state]

    @property
    def num_samples(self) -> int:
        return sum(job.num_samples for job in self.jobs.values() if not job.state.is_terminal)

    def claim(self, worker_id: str, max_samples: int, *, is_abandoned: bool) -> list[str]:
        claimed: list[Job] = []
        for job in self.having(JobState.QUEUED):
            if sum(other.num_samples for other in claimed) >= max_samples:
                break
            job.state, job.worker_id, job.is_abandoned = JobState.RUNNING, worker_id, is_abandoned
            job.attempt += 1
            claimed.append(job)
        return [job.id for job in claimed]

    def reclaim(self) -> Reclaimed:
        dead = [job for job in self.having(JobState.RUNNING) if job.is_abandoned]
        for job in dead:
            job.state = JobState.QUEUED if job.attempt < MAX_ATTEMPTS else JobState.FAILED
        num_failed = sum(job.state is JobState.FAILED for job in dead)
        return Reclaimed(num_requeued=len(dead) - num_failed, num_failed=num_failed)


@dataclass
class Play:
    """One random run: every operation is done to Redis and to the model, and must have the same outcome."""

    queue: JobQueue
    dying: JobQueue  # its leases are over at once
    rng: random.Random
    model: Model = field(default_factory=Model)
    claims: list[Claim] = field(default_factory=list)  # all that were ever given, stale ones too

    async def admit(self) -> None:
        job = Job(f"job-{len(self.model.jobs)}", self.rng.randint(1, 4))
        admission = self.queue.admit(spec(job.num_samples), job_id=job.id, reply_to=REPLIES)
        if self.model.num_samples + job.num_samples > LIMIT:
            with pytest.raises(QueueFull):
                await admission
        else:
            await admission
            self.model.jobs[job.id] = job

    async def claim(self) -> None:
        worker_id, max_samples, dies = self.rng.choice(WORKERS), self.rng.randint(0, 6), self.rng.random() < 0.4
        queue = self.dying if dies else self.queue
        claims = await queue.claim(worker_id, MODEL, VERSION, max_samples)
        assert [claim.job.id for claim in claims] == self.model.claim(worker_id, max_samples, is_abandoned=dies)
        self.claims += claims

    async def succeed(self) -> None:
        await self._end(JobState.SUCCEEDED)

    async def fail(self) -> None:
        await self._end(JobState.FAILED)

    async def _end(self, state: JobState) -> None:
        if not self.claims:
            return
        claim = self.rng.choice(self.claims)
        job = self.model.jobs[claim.job.id]
        if state is JobState.SUCCEEDED:
            accepted = await self.queue.succeed(claim, [b"image"], TIMINGS)
        else:
            accepted = await self.queue.fail(claim, JobError(code="broken", message=""))
        assert accepted == job.is_held_by(claim)
        if accepted:
            job.state = state

    async def release(self) -> None:
        if not self.claims:
            return
        claim = self.rng.choice(self.claims)
        job = self.model.jobs[claim.job.id]
        released = await self.queue.release(claim)
        assert released == job.is_held_by(claim)
        if released:
            job.state, job.attempt = JobState.QUEUED, job.attempt - 1

    async def renew(self) -> None:
        worker_id = self.rng.choice(WORKERS)
        mine = [claim for claim in self.claims if claim.worker_id == worker_id]
        renewed = [claim for claim in mine if self.model.jobs[claim.job.id].is_held_by(claim)]
        lost = await self.queue.renew(worker_id, mine)
        assert lost == {claim.job.id for claim in mine if claim not in renewed}
        for claim in renewed:
            self.model.jobs[claim.job.id].is_abandoned = False

    async def cancel(self) -> None:
        if not self.model.jobs:
            return
        job = self.rng.choice(list(self.model.jobs.values()))
        if not job.state.is_terminal:
            job.state = JobState.CANCELLED
        assert await self.queue.cancel(job.id) is job.state

    async def reclaim(self) -> None:
        assert await self.queue.reclaim() == self.model.reclaim()

    async def check(self) -> None:
        depth = await self.queue.depth(MODEL, VERSION)
        queued, running = self.model.having(JobState.QUEUED), self.model.having(JobState.RUNNING)
        assert depth == QueueDepth(len(queued), len(running), self.model.num_samples, depth.oldest_age_s)

    async def finish_all(self) -> None:
        for claim in await self.queue.claim("last", MODEL, VERSION, LIMIT):
            await self.queue.succeed(claim, [b"image"], TIMINGS)
            self.model.jobs[claim.job.id].state = JobState.SUCCEEDED
        for job in self.model.having(JobState.RUNNING):
            await self.queue.cancel(job.id)
            job.state = JobState.CANCELLED


@pytest.mark.parametrize("seed", range(12))
async def test_redis_and_the_model_agree(redis: Redis, seed: int) -> None:
    play = Play(
        queue=JobQueue(redis, max_queued_samples=LIMIT, max_attempts=MAX_ATTEMPTS),
        dying=JobQueue(redis, lease_s=0.0),
        rng=random.Random(seed),
    )
    for _ in range(300):
        await getattr(play, play.rng.choice(OPERATIONS))()
        await play.check()

    await play.finish_all()
    assert await play.queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0.0)

    replies = await call(redis, "XRANGE", REPLIES, "-", "+")
    ends = [(entry[b"job"].decode(), entry[b"state"].decode()) for _, entry in replies]
    assert sorted(ends) == sorted((job.id, job.state.value) for job in play.model.jobs.values())
    for job in play.model.jobs.values():
        record = await play.queue.get(job.id)
        assert record is not None
        assert record.state is job.state
        assert bool(await play.queue.images(job.id)) == (job.state is JobState.SUCCEEDED)
