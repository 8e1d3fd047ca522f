"""Random interleavings of all transitions, with the promises to users checked after them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import product

import pytest
from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.claims import Claim
from msf_scheduler.connection import call
from msf_scheduler.errors import DeadlineTooShort, IdempotencyConflict, QueueFull
from msf_scheduler.jobs import JobError, JobState, Priority, Provenance, Terms
from msf_scheduler.keys import RESERVED, QueueKeys, job
from msf_scheduler.leases import Leases
from msf_scheduler.queue import Idempotency, JobQueue, QueueDepth
from tests.scheduler.support import MODEL, NUM_STEPS, REPLIES, TIMINGS, VERSION, queue_keys, replies, spec, try_claim

LIMIT = 16
BYTES_PER_SAMPLE = 10
CHECK_EVERY = 4  # operations
WORKERS = {"a": "red", "b": "red", "c": "blue"}  # and their fingerprints
OPERATIONS = (
    *(("admit",) * 5 + ("claim",) * 4 + ("reclaim",) * 2),
    *("succeed", "fail", "release", "expire_held", "renew", "cancel", "expire", "sweep"),
)
BINDINGS = ("", "@red", "@blue")
WAKING = {name + bound for name in ("wake", "full") for bound in BINDINGS}
TENANTS = "xyz"
LANES = list(product(Priority, TENANTS))
PREFIX = QueueKeys.of(MODEL, VERSION).prefix


@dataclass
class Play:
    """One random run."""

    redis: Redis
    rng: random.Random
    admitted: dict[str, int] = field(default_factory=dict)  # samples by job
    claims: list[Claim] = field(default_factory=list)  # all of them, stale ones included
    cached: set[str] = field(default_factory=set)  # jobs that were answered at admission
    num_ends: Counter[str] = field(default_factory=Counter)  # times that a worker's end of the job was accepted
    states: dict[str, JobState] = field(default_factory=dict)  # after the latest operation
    leaders: dict[str, str] = field(default_factory=dict)  # identical jobs that others wait for, by the one that waits

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis, max_queued_samples=LIMIT)
        self.leases = Leases(self.redis)
        self.living = {worker_id: self._leases_of(fingerprint, 15.0) for worker_id, fingerprint in WORKERS.items()}
        self.dying = {worker_id: self._leases_of(fingerprint, 0.0) for worker_id, fingerprint in WORKERS.items()}

    def _leases_of(self, fingerprint: str, lease_s: float) -> Leases:
        return Leases(self.redis, lease_s=lease_s, fingerprints={(MODEL, VERSION): fingerprint})

    async def admit(self) -> None:
        job_id, num_samples = f"job-{len(self.admitted)}", self.rng.randint(1, 4)
        job_spec = spec(num_samples, seed=self.rng.randint(0, 2))
        terms = Terms(
            priority=self.rng.choice(list(Priority)),
            tenant=self.rng.choice(TENANTS),
            user=self.rng.choice(("", "u", "v")),
            weight=self.rng.choice((1.0, 2.5)),
            timeout_s=self.rng.choice((None, None, 1000.0, 1e-4)),
        )
        key = self.rng.choice((None, None, "first", "second"))
        bound_to = self.rng.choice((None, None, "red", "blue"))
        before = await self.num_samples() + await self.num_follower_samples()
        try:
            record = await self.queue.admit(
                job_spec,
                terms,
                job_id=job_id,
                reply_to=REPLIES,
                fingerprint=bound_to or self.rng.choice((None, "plan")),
                bound_to=bound_to,
                least_s=self.rng.choice((0.0, 0.0, 1.0)),
                result_bytes=BYTES_PER_SAMPLE * num_samples,
                idempotency=Idempotency(key, job_spec.model_dump_json().encode()) if key else None,
            )
        except QueueFull:
            assert before + num_samples > LIMIT
        except DeadlineTooShort:
            assert terms.timeout_s == 1e-4
        except IdempotencyConflict:
            assert key
        else:
            assert record.spec == job_spec
            assert record.id == job_id or (key and record.id in self.admitted)
            self.admitted[record.id] = num_samples
            if record.id == job_id and record.state.is_terminal:
                self.cached.add(job_id)

    async def claim(self) -> None:
        worker_id, idle = self.any_worker(), self.rng.random() < 0.5
        leases = (self.dying if self.rng.random() < 0.3 else self.living)[worker_id]
        claimed = await try_claim(
            leases,
            worker_id,
            self.rng.randint(0, 6),
            idle=idle,
            held=self.rng.sample(LANES, self.rng.randint(0, len(LANES))),
            max_samples=self.rng.randint(0, 9),
        )
        for lease in claimed.claims:
            assert self.states[lease.job.id] is JobState.QUEUED
            assert lease.job.state is JobState.RUNNING
            assert lease.job.bound_to in (None, WORKERS[worker_id])
            assert not lease.job.is_suspect or (claimed.alone and idle and len(claimed.claims) == 1)
        self.claims += claimed.claims

    async def succeed(self) -> None:
        if self.claims:
            lease = self.rng.choice(self.claims[-6:])
            images = [lease.job.id.encode()] * lease.job.spec.num_samples
            fingerprint = lease.job.bound_to or self.rng.choice(("plan", "another"))
            provenance = Provenance(fingerprint=fingerprint, reproducibility="fast")
            self.num_ends[lease.job.id] += await self.leases.succeed(lease, images, TIMINGS, provenance)

    async def fail(self) -> None:
        if self.claims:
            lease = self.rng.choice(self.claims)
            self.num_ends[lease.job.id] += await self.leases.fail(lease, JobError(code="broken", message=""))

    async def expire_held(self) -> None:
        if self.claims:
            lease = self.rng.choice(self.claims)
            self.num_ends[lease.job.id] += await self.leases.expire(lease)

    async def release(self) -> None:
        if self.claims:
            await self.leases.release(self.rng.choice(self.claims[-6:]))

    async def renew(self) -> None:
        worker_id = self.any_worker()
        mine = [lease for lease in self.claims if lease.worker_id == worker_id]
        lost = await self.living[worker_id].renew(worker_id, mine)
        running = {job_id for job_id, state in self.states.items() if state is JobState.RUNNING}
        assert {lease.job.id for lease in mine} - lost <= running

    async def cancel(self) -> None:
        await self._end(self.queue.cancel)

    async def expire(self) -> None:
        await self._end(self.queue.expire)

    async def _end(self, end: Callable[[str], Awaitable[JobState | None]]) -> None:
        if self.admitted:
            state = await end(self.rng.choice(list(self.admitted)))
            assert state is not None
            assert state.is_terminal

    async def sweep(self) -> None:
        await self.leases.sweep()

    async def reclaim(self) -> None:
        await self.leases.reclaim(self.any_worker())

    def any_worker(self) -> str:
        return self.rng.choice(list(WORKERS))

    async def num_samples(self) -> int:
        return (await self.queue.depth(MODEL, VERSION)).num_samples

    async def num_follower_samples(self) -> int:
        return int(await self.redis.hget(f"{PREFIX}counters", "follower_samples") or 0)

    async def read_states(self) -> None:
        """Read the jobs' states; one that has ended must not change any more."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in self.admitted:
                pipe.hmget(job(job_id), "state", "leader")
            fields = dict(zip(self.admitted, await pipe.execute(), strict=True))
        states = {job_id: JobState(state.decode()) for job_id, (state, _) in fields.items()}
        for job_id, state in self.states.items():
            assert not state.is_terminal or states[job_id] is state
        self.states = states
        self.leaders = {job_id: leader.decode() for job_id, (_, leader) in fields.items() if leader}

    async def check(self) -> None:
        """Counters and sets describe exactly the open jobs; every end was announced once."""
        states = self.states
        open_jobs = {job_id for job_id, state in states.items() if not state.is_terminal} - self.leaders.keys()
        num_samples = sum(self.admitted[job_id] for job_id in open_jobs)
        assert await self.num_samples() == num_samples
        assert await self.num_follower_samples() == sum(self.admitted[job_id] for job_id in self.leaders)
        assert int(await self.redis.get(RESERVED) or 0) == BYTES_PER_SAMPLE * num_samples

        queued = {job_id for job_id in open_jobs if states[job_id] is JobState.QUEUED}
        num_steps_queued = sum(self.admitted[job_id] * (NUM_STEPS + 1) for job_id in queued)
        assert (await self.queue.depth(MODEL, VERSION)).num_steps_queued == num_steps_queued
        suspects, in_lanes = await self.members("suspects*"), await self.members("lane*")
        assert await self.members("waiting") == queued == suspects | (in_lanes - self.leaders.keys())
        assert not suspects & in_lanes
        followers = {job_id for job_id, leader in self.leaders.items() if leader in queued - suspects}
        assert followers <= in_lanes, "shared work is done when the first of its waiters would be served"
        assert in_lanes <= queued | self.leaders.keys()
        assert await self.members("leases") == open_jobs - queued
        for bound in BINDINGS:
            await self.check_newcomers(bound)
            waits = any([await self.members(f"lane{rank}{bound}:*") for rank in range(3)])
            assert not waits or await self.redis.exists(f"{PREFIX}wake{bound}"), (
                "a waiting worker is woken while there is work"
            )
        assert bool(in_lanes) == bool(await self.members("tenants*")) == bool(await self.members("users*"))

        announced = Counter(await replies(self.redis))
        assert announced == {
            (job_id, s): 1 for job_id, s in states.items() if s.is_terminal and job_id not in self.cached
        }
        assert not self.num_ends or max(self.num_ends.values()) <= 1

    async def check_newcomers(self, bound: str) -> None:
        """Check that one of the full workers that have not seen the latest newcomer is woken."""
        newest = await call(self.redis, "ZRANGE", f"{PREFIX}newcomers{bound}", -1, -1, "WITHSCORES")
        if not newest:
            return
        waiters = await call(self.redis, "ZRANGEBYSCORE", f"{PREFIX}full{bound}", "-inf", b"(" + newest[1])
        unseen = [waiter.decode() for waiter in waiters]
        assert not unseen or await self.redis.exists(*(f"{PREFIX}newcomer_token{waiter}" for waiter in unseen))

    async def members(self, pattern: str) -> set[str]:
        """Return the members of all the queue's sorted sets whose names match."""
        names = await call(self.redis, "KEYS", PREFIX + pattern)
        return {member.decode() for name in names for member in await call(self.redis, "ZRANGE", name, 0, -1)}

    async def finish_all(self) -> None:
        """Finish all that waits, suspects included, by workers that stay alive."""
        while (await self.queue.depth(MODEL, VERSION)).num_jobs_queued:
            for worker_id in WORKERS:
                for lease in (await try_claim(self.living[worker_id], worker_id, LIMIT, idle=True)).claims:
                    assert await self.leases.succeed(lease, [b"image"] * lease.job.spec.num_samples, TIMINGS)
        for job_id in self.admitted:
            await self.queue.cancel(job_id)

    async def forget_all(self) -> None:
        """Let every result expire, and sweep."""
        for job_id in await self.members("ends"):
            await self.redis.zadd(f"{PREFIX}ends", {job_id: 0})
        await self.leases.sweep()


@pytest.mark.parametrize("seed", range(8))
async def test_invariants_hold_after_every_operation(redis: Redis, seed: int) -> None:
    play = Play(redis, random.Random(seed))
    for step in range(200):
        await getattr(play, play.rng.choice(OPERATIONS))()
        await play.read_states()
        if step % CHECK_EVERY == 0:
            await play.check()
    async with asyncio.timeout(20):
        await play.finish_all()
    await play.read_states()
    await play.check()

    assert all(state.is_terminal for state in play.states.values())
    assert await play.queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    tokens = {f"newcomer_token{waiter}" for waiter in await play.members("full*")}
    assert await queue_keys(redis) <= {"counters", *WAKING, *tokens, "fingerprints", "ends", "dead_letters"}
    for job_id, num_samples in play.admitted.items():
        record = await play.queue.get(job_id)
        assert record is not None
        has_images = record.state is JobState.SUCCEEDED
        assert len(await play.queue.images(record)) == (num_samples if has_images else 0)
    await play.forget_all()
    assert not await redis.exists(keys.OPEN_STEPS)
    key_names = {key.decode() for key in await call(redis, "KEYS", "*")}
    queues = {PREFIX + name for name in ("counters", "fingerprints", *WAKING, *tokens)}
    notices = {f"{keys.NOTICES}{worker_id}" for worker_id in WORKERS}
    assert key_names <= {REPLIES, keys.QUEUES, keys.CLOCK, RESERVED, *queues, *notices}
