"""Queue of jobs in Redis, as servers use it: each transition is atomic.

    admit → queued → claim → running → succeed, fail → succeeded, failed
               ↑                 │
               └ release, sweep, reclaim     cancel and expire end a job in either state

`leases.py` is the side of the workers.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.claims import EXPIRED
from msf_scheduler.connection import RedisClient, call, call_all
from msf_scheduler.errors import DeadlineTooShort, IdempotencyConflict, LimitExceeded, MemoryFull, QueueFull
from msf_scheduler.job_codec import decode_job
from msf_scheduler.jobs import SCHEMA_VERSION, JobError, JobRecord, JobSpec, JobState, Terms
from msf_scheduler.keys import QueueKeys
from msf_scheduler.scripts import Script, by_name
from msf_scheduler.tunables import (
    MAX_PENDING_WEBHOOKS,
    MAX_QUEUED_SAMPLES,
    MAX_RETRY_AFTER_S,
    MAX_STORED_JOBS,
    MIN_RETRY_AFTER_S,
    RESULT_TTL_S,
)
from msf_scheduler.webhook_queue import receiver

_JOB_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Idempotency:
    """A caller's name for a request; the same `key` with another `body` is refused."""

    key: str
    body: bytes


@dataclass(frozen=True)
class QueueDepth:
    """One model version's queue.

    `num_samples` counts queued and running. `num_steps_queued` counts the sample steps of the queued, decodes included;
    `oldest_age_s` is of the queued, or 0.
    """

    num_jobs_queued: int
    num_jobs_running: int
    num_samples: int
    num_steps_queued: int
    oldest_age_s: float


def new_job_id() -> str:
    """Return an id that cannot be guessed: a job's id gives access to its images."""
    return secrets.token_hex(16)


def is_job_id(text: str) -> bool:
    """Return whether `text` may be a job's id; with a suffix of `keys`, it would name another key of a job."""
    return _JOB_ID.fullmatch(text) is not None


class JobQueue:
    """Admission, state and end of jobs.

    Every method raises `QueueUnavailable` when Redis cannot be used; the call may then have taken effect or not.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        max_queued_samples: int = MAX_QUEUED_SAMPLES,
        result_ttl_s: float = RESULT_TTL_S,
        max_stored_jobs: int = MAX_STORED_JOBS,
        max_pending_webhooks: int = MAX_PENDING_WEBHOOKS,
    ) -> None:
        """`max_stored_jobs`, ended ones included, and `max_pending_webhooks` are limits of each tenant."""
        self._redis = redis
        self._tenant_limits = {"stored_jobs": max_stored_jobs, "pending_webhooks": max_pending_webhooks}
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
        fingerprint: str | None = None,
        bound_to: str | None = None,
        max_open_steps: int | None = None,
    ) -> JobRecord:
        """Queue a job.

        Raises `QueueFull`, `LimitExceeded`, `MemoryFull`, `DeadlineTooShort` or `IdempotencyConflict`.
        An id or idempotency key that was admitted before returns that job as it is now. With `fingerprint`, of the
        plans that are expected to run it, the job shares the work and the result of identical jobs. Only workers with
        the fingerprint `bound_to` run it; if none has it for a minute, the job fails.
        `least_s` is the shortest time the job can take, `result_bytes` the largest size of its files,
        `max_open_steps` the limit of the tenant's sample steps that are queued or running at once.
        """
        terms = terms or Terms()
        queue = QueueKeys.of(spec.model, spec.version)
        spec_json = spec.model_dump_json()
        share = idempotency_key = digest = None
        if fingerprint:
            share = f"{keys.SHARE}{_digest(fingerprint, spec_json)}"
        if idempotency:
            idempotency_key = f"{keys.IDEMPOTENCY}{_digest(terms.tenant, idempotency.key)}"
            digest = hashlib.sha256(idempotency.body).hexdigest()
        fields = {
            "id": job_id,
            "schema_version": SCHEMA_VERSION,
            "spec": spec_json,
            "terms": terms.model_dump_json(),
            "model": spec.model,
            "version": spec.version,
            "num_samples": spec.num_samples,
            "priority_class": terms.priority.rank,
            "tenant": terms.tenant,
            "user": terms.user,
            "weight": terms.weight,
            "cost": spec.num_samples * spec.num_steps,
            "least_s": least_s,
            "result_bytes": result_bytes,
            "webhook": receiver(terms.webhook_url) if terms.webhook_url else None,
            "bound_to": bound_to,
            "fingerprint": fingerprint,
            "share": share,
            "idempotency": idempotency_key,
        }
        reply = await self._admit(
            {
                "queue": queue.prefix,
                "job": keys.job(job_id),
                "tenant_jobs": f"{keys.TENANT_JOBS}{terms.tenant}",
                "idempotency": idempotency_key,
                "share": share,
            },
            id=job_id,
            fields={name: value for name, value in fields.items() if value is not None},
            name=queue.name,
            limit=self._max_queued_samples,
            digest=digest,
            timeout_s=terms.timeout_s,
            reply_to=reply_to,
            ttl_s=self._result_ttl_s,
            max_open_steps=max_open_steps,
            **{f"max_{name}": limit for name, limit in self._tenant_limits.items()},
        )
        match by_name(reply):
            case {"outcome": b"accepted", "job": job}:
                return decode_job(job)
            case {"outcome": b"conflict", "job_id": other_id}:
                raise IdempotencyConflict(other_id.decode())
            case {"outcome": b"late"}:
                raise DeadlineTooShort(terms.timeout_s or 0.0, least_s)
            case {"outcome": b"memory", "used_bytes": used_bytes, "limit_bytes": limit_bytes}:
                raise MemoryFull(used_bytes, limit_bytes)
            case {"outcome": b"limited", "limit": name, "retry_after_s": retry_after_s}:
                limits = self._tenant_limits | {"concurrent_sample_steps": max_open_steps or 0}
                raise LimitExceeded(name.decode(), limits[name.decode()], _bounded(retry_after_s))
            case full:
                raise QueueFull(
                    spec.model,
                    num_samples=full["num_samples"],
                    limit=self._max_queued_samples,
                    retry_after_s=_bounded(full["retry_after_s"]),
                )

    async def get(self, job_id: str) -> JobRecord | None:
        """Return the job as it is now, or None if it never existed or was forgotten."""
        fields = await call(self._redis, "HGETALL", keys.job(job_id)) if is_job_id(job_id) else None
        return decode_job(fields) if fields else None

    async def read(self, job_id: str) -> tuple[JobRecord, list[bytes]] | None:
        """Return a job and its encoded files, none unless it has succeeded, in one round trip; None if unknown.

        A result that is shared with another job takes a second one.
        """
        if not is_job_id(job_id):
            return None
        fields, files = await call_all(
            self._redis,
            ("HGETALL", keys.job(job_id)),  # before the files: those of a job that has succeeded are all there
            ("LRANGE", keys.images(job_id), 0, -1),
        )
        if not fields:
            return None
        job = decode_job(fields)
        if job.state is not JobState.SUCCEEDED:
            return job, []  # its worker may be storing them
        return job, await self.images(job) if job.images_of else files

    async def _get_all(self, job_ids: Sequence[bytes]) -> list[JobRecord]:
        """Return those of the jobs that are still stored."""
        hashes = await call_all(self._redis, *(("HGETALL", keys.job(job_id.decode())) for job_id in job_ids))
        return [decode_job(fields) for fields in hashes if fields]

    async def jobs_of(self, tenant: str, *, limit: int, before: str | None = None) -> list[JobRecord]:
        """Return at most `limit` of a tenant's stored jobs that are older than job `before`, newest first."""
        index = f"{keys.TENANT_JOBS}{tenant}"
        rank = await call(self._redis, "ZREVRANK", index, before) if before else -1
        if rank is None:
            return []
        ids = await call(self._redis, "ZREVRANGE", index, rank + 1, rank + limit)
        return await self._get_all(ids)

    async def images(self, job: JobRecord) -> list[bytes]:
        """Return the encoded files in the order of the samples; empty if there are none, or none any more."""
        return list(await call(self._redis, "LRANGE", keys.images(job.images_of or job.id), 0, -1))

    async def image(self, job: JobRecord, index: int) -> bytes | None:
        """Return the encoded file of one sample of a job that has succeeded; None if it is no longer kept."""
        position = index - job.spec.first_index
        file: bytes | None = await call(self._redis, "LINDEX", keys.images(job.images_of or job.id), position)
        return file

    async def cancel(self, job_id: str) -> JobState | None:
        """End the job now unless it has ended. Return the state it is left in, or None if there is no such job.

        A worker that runs it frees its slots at the next step. Jobs that share its work still complete.
        """
        return await self._end(job_id, JobState.CANCELLED)

    async def expire(self, job_id: str) -> JobState | None:
        """Do as `cancel` for a job whose deadline has passed."""
        return await self._end(job_id, JobState.EXPIRED, EXPIRED)

    async def _end(self, job_id: str, state: JobState, error: JobError | None = None) -> JobState | None:
        if not is_job_id(job_id):
            return None
        model, version = await call(self._redis, "HMGET", keys.job(job_id), "model", "version")
        if model is None:
            return None
        final_state = await self._cancel(
            {"queue": QueueKeys.of(model.decode(), version.decode()).prefix, "job": keys.job(job_id)},
            id=job_id,
            state=state,
            error=error and error.model_dump_json(),
            ttl_s=self._result_ttl_s,
        )
        return JobState(final_state.decode()) if final_state else None

    async def depth(self, model: str, version: str) -> QueueDepth:
        """Return the current depth of a model version's queue."""
        reply = by_name(await self._depth({"queue": QueueKeys.of(model, version).prefix}))
        return QueueDepth(**reply | {"oldest_age_s": float(reply["oldest_age_s"])})

    async def dead_letters(self, model: str, version: str) -> list[JobRecord]:
        """Return the failed jobs that are still stored, latest first."""
        ids = await call(self._redis, "ZRANGE", QueueKeys.of(model, version).dead_letters, 0, -1, "REV")
        return await self._get_all(ids)

    async def requeue(self, dead_letter: JobRecord) -> JobRecord:
        """Admit a failed job's spec again under a new id, and remove the failed job from the dead letters."""
        job_key = keys.job(dead_letter.id)
        least_s, result_bytes = await call(self._redis, "HMGET", job_key, "least_s", "result_bytes")
        job = await self.admit(
            dead_letter.spec,
            dead_letter.terms,
            job_id=new_job_id(),
            reply_to=None,
            least_s=float(least_s or 0),
            result_bytes=int(result_bytes or 0),
            bound_to=dead_letter.bound_to,
        )
        queue = QueueKeys.of(dead_letter.spec.model, dead_letter.spec.version)
        await call(self._redis, "ZREM", queue.dead_letters, dead_letter.id)
        return job


def _bounded(retry_after_s: bytes) -> float:
    return min(max(float(retry_after_s), MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def _digest(*parts: str) -> str:
    """Return a SHA-256 of the parts, with their boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
