"""The queue of jobs in Redis, as servers use it: one atomic transition each.

    admit → queued → claim → running → succeed, fail → succeeded, failed
               ↑                 │
               └ release, sweep, bury        cancel and expire end a job in either state

Workers' side is `leases.py`.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call, guarded
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import DeadlineTooShort, IdempotencyConflict, MemoryFull, QueueFull
from msf_scheduler.job_codec import SCHEMA_VERSION, decode_job
from msf_scheduler.jobs import JobError, JobRecord, JobSpec, JobState, Priority, Terms
from msf_scheduler.keys import QueueKeys
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import (
    MAX_QUEUED_SAMPLES,
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    RESULT_TTL_S,
)

BANDS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}
EXPIRED = JobError(code=ErrorCode.DEADLINE, message="the job could not end within its timeout_s")


@dataclass(frozen=True)
class Idempotency:
    """A caller's name for a request; the same `key` with another `body` is refused."""

    key: str
    body: bytes


@dataclass(frozen=True)
class QueueDepth:
    """One model version's queue. `num_samples` counts queued and running; `oldest_age_s` is of the queued, or 0."""

    num_jobs_queued: int
    num_jobs_running: int
    num_samples: int
    oldest_age_s: float


def new_job_id() -> str:
    """Unguessable: whoever knows a job's id may read its images."""
    return secrets.token_hex(16)


class JobQueue:
    """Every method raises `QueueUnavailable` when Redis cannot be used; it may then have taken effect or not."""

    def __init__(
        self,
        redis: Redis,
        *,
        max_queued_samples: int = MAX_QUEUED_SAMPLES,
        result_ttl_s: float = RESULT_TTL_S,
    ) -> None:
        self._redis = redis
        self._max_queued_samples = max_queued_samples
        self._result_ttl_s = result_ttl_s
        self._admit = Script(redis, "admit")
        self._cancel = Script(redis, "cancel")
        self._depth = Script(redis, "depth")

    async def admit(
        self,
        spec: JobSpec,
        terms: Terms | None = None,
        *,
        job_id: str,
        reply_to: str | None,
        least_s: float = 0.0,
        result_bytes: int = 0,
        idempotency: Idempotency | None = None,
        plan: str | None = None,
        bound_to: str | None = None,
    ) -> JobRecord:
        """Queue a job, or raise `QueueFull`, `MemoryFull`, `DeadlineTooShort` or `IdempotencyConflict`.

        An id or idempotency key that was admitted before only gives that job as it is now. With `plan`, the
        fingerprint of what is going to run it, the job shares the work and the result of identical jobs. Only workers
        of the fingerprint `bound_to` run it; when there have been none for a minute, it fails.
        `least_s` is the shortest time that it can take, `result_bytes` the most that its files can.
        """
        terms = terms or Terms()
        queue = QueueKeys.of(spec.model, spec.version)
        outcome, *answer = await self._admit(
            queue.prefix,
            name=queue.name,
            id=job_id,
            schema_version=SCHEMA_VERSION,
            spec=spec.model_dump_json(),
            terms=terms.model_dump_json(),
            model=spec.model,
            version=spec.version,
            num_samples=spec.num_samples,
            band=BANDS[terms.priority],
            tenant=terms.tenant,
            user=terms.user,
            weight=terms.weight,
            cost=spec.num_samples * spec.num_steps,
            timeout_s=terms.timeout_s,
            least_s=least_s,
            result_bytes=result_bytes,
            reply_to=reply_to,
            webhook=terms.webhook_url,
            limit=self._max_queued_samples,
            idempotency=idempotency and f"{keys.IDEMPOTENCY_PREFIX}{_digest(terms.tenant, idempotency.key)}",
            digest=idempotency and hashlib.sha256(idempotency.body).hexdigest(),
            plan=plan,
            bound=bound_to,
            share=plan and f"{keys.SHARE_PREFIX}{_digest(plan, spec.model_dump_json())}",
            ttl_s=self._result_ttl_s,
        )
        match outcome:
            case b"accepted":
                return decode_job(answer[0])
            case b"conflict":
                raise IdempotencyConflict(answer[0].decode())
            case b"late":
                raise DeadlineTooShort(terms.timeout_s or 0.0, least_s)
            case b"memory":
                used, limit = answer
                raise MemoryFull(f"the results of {used / 2**20:.0f} MiB may not fit into Redis's {limit / 2**20:.0f}")
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

    async def read(self, job_id: str) -> tuple[JobRecord, list[bytes]] | None:
        """Return a job and its encoded files, none unless it has succeeded, in one round trip; None if unknown.

        A result that is shared with another job takes a second one.
        """
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(keys.job(job_id))
            pipeline.lrange(keys.images(job_id), 0, -1)
            fields, files = await guarded(self._redis, pipeline.execute())
        if not fields:
            return None
        job = decode_job(fields)
        return job, await self.images(job) if job.images_of else files

    async def jobs_of(self, tenant: str, *, limit: int, before: str | None = None) -> list[JobRecord]:
        """A tenant's jobs that are still known, the newest first, at most `limit`, of those older than job `before`."""
        index = keys.tenant_jobs(tenant)
        rank = await call(self._redis, "ZREVRANK", index, before) if before else -1
        if rank is None:
            return []
        ids = await call(self._redis, "ZREVRANGE", index, rank + 1, rank + limit)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hgetall(keys.job(job_id.decode()))
            found = await guarded(self._redis, pipeline.execute())
        return [decode_job(fields) for fields in found if fields]

    async def images(self, job: JobRecord) -> list[bytes]:
        """The job's encoded files in the order of its samples; empty when there are none (any more)."""
        return list(await call(self._redis, "LRANGE", keys.images(job.images_of or job.id), 0, -1))

    async def cancel(self, job_id: str) -> JobState | None:
        """End the job now, unless it has ended. Returns the state it is left in; None: there is no such job.

        A worker that runs it frees its slots at the next step. Others that share its work still get it done.
        """
        return await self._end(job_id, JobState.CANCELLED)

    async def expire(self, job_id: str) -> JobState | None:
        """As `cancel`, for a job whose time is up."""
        return await self._end(job_id, JobState.EXPIRED, EXPIRED)

    async def _end(self, job_id: str, state: JobState, error: JobError | None = None) -> JobState | None:
        model, version = await call(self._redis, "HMGET", keys.job(job_id), "model", "version")
        if model is None:
            return None
        left_in = await self._cancel(
            QueueKeys.of(model.decode(), version.decode()).prefix,
            id=job_id,
            state=state,
            error=error and error.model_dump_json(),
            ttl_s=self._result_ttl_s,
        )
        return JobState(left_in.decode()) if left_in else None

    async def depth(self, model: str, version: str) -> QueueDepth:
        num_queued, num_running, num_samples, age_s = await self._depth(QueueKeys.of(model, version).prefix)
        return QueueDepth(num_queued, num_running, num_samples, float(age_s))

    async def dead_letters(self, model: str, version: str) -> list[JobRecord]:
        """The failed jobs that are still known, latest first."""
        ids = await call(self._redis, "ZRANGE", QueueKeys.of(model, version).dead, 0, -1, "REV")
        records = [await self.get(job_id.decode()) for job_id in ids]
        return [record for record in records if record is not None]

    async def requeue(self, dead: JobRecord) -> JobRecord:
        """Admit what a failed job asked for anew, under another id, and take it off the dead letters."""
        least_s, result_bytes = await call(self._redis, "HMGET", keys.job(dead.id), "least_s", "result_bytes")
        job = await self.admit(
            dead.spec,
            dead.terms,
            job_id=new_job_id(),
            reply_to=None,
            least_s=float(least_s or 0),
            result_bytes=int(result_bytes or 0),
            bound_to=dead.bound_to,
        )
        await call(self._redis, "ZREM", QueueKeys.of(dead.spec.model, dead.spec.version).dead, dead.id)
        return job


def _digest(*parts: str) -> str:
    """Of the parts as they are, whatever they contain."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
