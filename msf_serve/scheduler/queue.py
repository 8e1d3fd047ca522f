"""The queue of jobs in Redis: what servers and workers do with a job, one atomic transition each.

    admit → queued → claim → running → succeed, fail → succeeded, failed
               ↑                 │
               └ release, reclaim┘        cancel ends a job in either state

A lease is worth `attempt` and worker id together: whoever lost it can no longer change the job.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from msf_serve.scheduler import keys
from msf_serve.scheduler.connection import MAX_BLOCK_S, call
from msf_serve.scheduler.errors import QueueFull
from msf_serve.scheduler.jobs import JobError, JobRecord, JobSpec, JobState, Timings
from msf_serve.scheduler.keys import QueueKeys
from msf_serve.scheduler.records import SCHEMA_VERSION, decode_job
from msf_serve.scheduler.scripts import Script

MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0
NEVER_WOKEN = b"0-0"


@dataclass(frozen=True)
class Claim:
    """A job leased to a worker; `job.attempt` is the fencing token."""

    job: JobRecord
    worker_id: str


@dataclass(frozen=True)
class QueueDepth:
    """One model version's queue. `num_samples` counts queued and running; `oldest_age_s` is of the queued, or 0."""

    num_jobs_queued: int
    num_jobs_running: int
    num_samples: int
    oldest_age_s: float


@dataclass(frozen=True)
class Reclaimed:
    """What `reclaim` took from dead workers."""

    num_requeued: int
    num_failed: int


def new_job_id() -> str:
    """Unguessable: whoever knows a job's id may read its images."""
    return secrets.token_hex(16)


class JobQueue:
    """Every method raises `QueueUnavailable` when Redis cannot be used; it may then have taken effect or not."""

    def __init__(
        self,
        redis: Redis,
        *,
        max_queued_samples: int = 4096,
        lease_s: float = 15.0,
        result_ttl_s: float = 600.0,
        max_attempts: int = 3,
    ) -> None:
        self._redis = redis
        self._max_queued_samples = max_queued_samples
        self._lease_s = lease_s
        self._result_ttl_ms = round(result_ttl_s * 1000)
        self._max_attempts = max_attempts
        self._woken: dict[QueueKeys, bytes] = {}  # the last wake-up that a claim has already answered
        self._admit = Script(redis, "admit")
        self._claim = Script(redis, "claim")
        self._renew = Script(redis, "renew")
        self._finish = Script(redis, "finish")
        self._release = Script(redis, "release")
        self._reclaim = Script(redis, "reclaim")
        self._cancel = Script(redis, "cancel")
        self._depth = Script(redis, "depth")

    # Server side

    async def admit(self, spec: JobSpec, *, job_id: str, reply_to: str | None) -> JobRecord:
        """Queue a job, or raise `QueueFull`. An id that was admitted before only gives that job as it is now."""
        queue = QueueKeys.of(spec.model, spec.version)
        accepted, *answer = await self._admit(
            [keys.job(job_id), queue.waiting, queue.counters, queue.wake],
            [
                job_id,
                SCHEMA_VERSION,
                spec.model_dump_json(),
                spec.model,
                spec.version,
                spec.num_samples,
                reply_to or "",
                self._max_queued_samples,
            ],
        )
        if accepted:
            return decode_job(answer[0])
        num_samples, retry_after_s = answer
        raise QueueFull(
            spec.model,
            num_samples=num_samples,
            limit=self._max_queued_samples,
            retry_after_s=min(max(float(retry_after_s), MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S),
        )

    async def get(self, job_id: str) -> JobRecord | None:
        """The job as it is now; None when it never was or its result's life is over."""
        fields = await call(self._redis, "HGETALL", keys.job(job_id))
        return decode_job(fields) if fields else None

    async def images(self, job_id: str) -> list[bytes]:
        """The job's encoded files in the order of its samples; empty when there are none (any more)."""
        return list(await call(self._redis, "LRANGE", keys.images(job_id), 0, -1))

    async def cancel(self, job_id: str) -> JobState | None:
        """End the job now, unless it has ended. Returns the state it is left in; None: there is no such job."""
        model, version = await call(self._redis, "HMGET", keys.job(job_id), "model", "version")
        if model is None:
            return None
        queue = QueueKeys.of(model.decode(), version.decode())
        state = await self._cancel(
            [keys.job(job_id), queue.waiting, queue.leases, queue.counters], [job_id, self._result_ttl_ms]
        )
        return JobState(state.decode()) if state else None

    async def depth(self, model: str, version: str) -> QueueDepth:
        queue = QueueKeys.of(model, version)
        num_queued, num_running, num_samples, age_s = await self._depth(
            [queue.waiting, queue.leases, queue.counters], [keys.JOB_PREFIX]
        )
        return QueueDepth(num_queued, num_running, num_samples, float(age_s))

    # Worker side

    async def claim(self, worker_id: str, model: str, version: str, max_samples: int) -> list[Claim]:
        """Lease the oldest jobs, whole, while they hold fewer than `max_samples`; the last may overshoot."""
        queue = QueueKeys.of(model, version)
        woken, *claimed = await self._claim(
            [queue.waiting, queue.leases, queue.wake, keys.QUEUES],
            [queue.name, worker_id, max_samples, self._lease_s, keys.JOB_PREFIX],
        )
        self._woken[queue] = woken
        return [Claim(decode_job(fields), worker_id) for fields in claimed]

    async def wait_for_work(self, models: Sequence[tuple[str, str]], timeout_s: float) -> None:
        """Return when a `claim` from one of these (model, version) may find work, or after `timeout_s`.

        At most `MAX_BLOCK_S`, whatever `timeout_s` says; claim again in any case. Nothing is missed that came
        after this object's last claim. All waiting workers wake, and the first to claim gets the job.
        """
        queues = [QueueKeys.of(model, version) for model, version in models]
        cursors = [self._woken.get(queue, NEVER_WOKEN) for queue in queues]
        block_ms = max(round(min(timeout_s, MAX_BLOCK_S) * 1000), 1)  # 0 would block for ever
        await call(self._redis, "XREAD", "BLOCK", block_ms, "STREAMS", *(q.wake for q in queues), *cursors)

    async def renew(self, worker_id: str, claims: Sequence[Claim]) -> set[str]:
        """Extend the leases; returns the ids of jobs that are no longer this worker's (lost or cancelled)."""
        held: dict[QueueKeys, list[str | int]] = defaultdict(list)
        for claim in claims:
            held[_queue_of(claim)] += [claim.job.id, claim.job.attempt]
        lost: set[str] = set()
        for queue, held_jobs in held.items():
            answer = await self._renew([queue.leases], [worker_id, self._lease_s, keys.JOB_PREFIX, *held_jobs])
            lost.update(job_id.decode() for job_id in answer)
        return lost

    async def succeed(self, claim: Claim, images: Sequence[bytes], timings: Timings) -> bool:
        """Store the encoded files in the order of the samples. False: dropped, the lease was lost."""
        return await self._end(claim, JobState.SUCCEEDED, "timings", timings.model_dump_json(), images)

    async def fail(self, claim: Claim, error: JobError) -> bool:
        """End the job with an error. False: dropped, the lease was lost."""
        return await self._end(claim, JobState.FAILED, "error", error.model_dump_json())

    async def _end(self, claim: Claim, state: JobState, field: str, value: str, images: Sequence[bytes] = ()) -> bool:
        job, queue = claim.job, _queue_of(claim)
        return bool(
            await self._finish(
                [keys.job(job.id), keys.images(job.id), queue.leases, queue.counters],
                [job.id, claim.worker_id, job.attempt, state, field, value, self._result_ttl_ms, *images],
            )
        )

    async def release(self, claim: Claim) -> bool:
        """Give the job back, to its old place, not held against it. False: the lease was lost."""
        job, queue = claim.job, _queue_of(claim)
        return bool(
            await self._release(
                [keys.job(job.id), queue.waiting, queue.leases, queue.wake],
                [job.id, claim.worker_id, job.attempt],
            )
        )

    async def reclaim(self) -> Reclaimed:
        """Take back the jobs, of any model, whose lease ran out. Every worker calls it on a timer."""
        poisoned = JobError(
            code="poisoned",
            message=f"{self._max_attempts} workers stopped while they ran this job; it is not tried again",
        )
        names = await call(self._redis, "SMEMBERS", keys.QUEUES)
        num_requeued = num_failed = 0
        for name in names:
            queue = QueueKeys(name.decode())
            requeued, failed = await self._reclaim(
                [queue.waiting, queue.leases, queue.counters, queue.wake],
                [keys.JOB_PREFIX, self._max_attempts, poisoned.model_dump_json(), self._result_ttl_ms],
            )
            num_requeued += requeued
            num_failed += failed
        return Reclaimed(num_requeued, num_failed)


def _queue_of(claim: Claim) -> QueueKeys:
    return QueueKeys.of(claim.job.spec.model, claim.job.spec.version)
