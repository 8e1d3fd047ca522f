"""The queue of jobs in Redis, as workers use it: claim, keep, give up.

A lease is worth `attempt` and worker id together: whoever lost it can no longer change the job.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import MAX_BLOCK_S, call
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.job_codec import decode_job
from msf_scheduler.jobs import JobError, JobRecord, JobState, ModelKey, Preview, Progress, Provenance, Timings
from msf_scheduler.keys import QueueKeys
from msf_scheduler.queue import EXPIRED
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import DEAD_LETTER_TTL_S, LEASE_S, RESULT_TTL_S

GONE = JobError(
    code=ErrorCode.FINGERPRINT_GONE,
    message="no worker can make the bytes that were promised any more; ask again, for another fingerprint",
)
POISONED = JobError(code=ErrorCode.POISONED, message="every worker that ran this job stopped; it is not tried again")


@dataclass(frozen=True)
class Claim:
    """A job leased to a worker; `job.attempt` is the fencing token."""

    job: JobRecord
    worker_id: str


@dataclass(frozen=True)
class Claimed:
    """What a claim brought. `alone`: a suspect waits (or was claimed), so the worker must hold nothing else.

    `num_expired` jobs were dropped, as their deadlines could not be met any more.
    """

    claims: tuple[Claim, ...] = ()
    alone: bool = False
    num_expired: int = 0


@dataclass(frozen=True)
class Swept:
    """What upkeep did: jobs taken back from workers, given up as poisoned, and dropped past their deadline."""

    num_requeued: int = 0
    num_poisoned: int = 0
    num_expired: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.num_requeued + other.num_requeued,
            self.num_poisoned + other.num_poisoned,
            self.num_expired + other.num_expired,
        )


class Leases:
    """Every method raises `QueueUnavailable` when Redis cannot be used; it may then have taken effect or not."""

    def __init__(
        self,
        redis: Redis,
        *,
        lease_s: float = LEASE_S,
        result_ttl_s: float = RESULT_TTL_S,
        fingerprints: Mapping[ModelKey, str] | None = None,
    ) -> None:
        """`fingerprints`, by (model, version), are those of a worker that claims: jobs bound to them are for it."""
        self._redis = redis
        self._fingerprints = {QueueKeys.of(*model): its for model, its in (fingerprints or {}).items()}
        self._lease_s = lease_s
        self._lives = {"ttl_s": result_ttl_s, "dead_ttl_s": DEAD_LETTER_TTL_S}
        self._claim = Script(redis, "claim")
        self._renew = Script(redis, "renew")
        self._finish = Script(redis, "finish")
        self._release = Script(redis, "release")
        self._sweep = Script(redis, "sweep")
        self._bury = Script(redis, "bury")
        self._publish = Script(redis, "publish")

    def run_with(self, model: ModelKey, fingerprint: str) -> None:
        """From now on, jobs of this (model, version) that are bound to the fingerprint are for this worker too."""
        self._fingerprints[QueueKeys.of(*model)] = fingerprint

    async def claim(self, worker_id: str, model: str, version: str, max_samples: int, *, idle: bool) -> Claimed:
        """Lease the next jobs, whole, while they hold fewer than `max_samples`; the last may overshoot.

        `idle`: the worker holds nothing, of no model; only then does it get a suspect.
        """
        queue = QueueKeys.of(model, version)
        alone, num_expired, *claimed = await self._claim(
            queue.prefix,
            worker=worker_id,
            max_samples=max_samples,
            lease_s=self._lease_s,
            idle=idle,
            fingerprint=self._fingerprints.get(queue),
            expired=EXPIRED.model_dump_json(),
            **self._lives,
        )
        claims = tuple(Claim(decode_job(fields), worker_id) for fields in claimed)
        return Claimed(claims, bool(alone), num_expired)

    async def wait_for_work(self, models: Sequence[ModelKey], timeout_s: float) -> None:
        """Return when a `claim` from one of these (model, version) may find work, or after `timeout_s`.

        At most `MAX_BLOCK_S`, whatever `timeout_s` says; claim again in any case. Of several workers that wait, the
        one that has waited longest returns, and the next when its claim leaves work.
        """
        queues = [QueueKeys.of(*model) for model in models]
        tokens = [queue.wake() for queue in queues]
        tokens += [queue.wake(self._fingerprints[queue]) for queue in queues if queue in self._fingerprints]
        block_s = max(min(timeout_s, MAX_BLOCK_S), 0.001)  # 0 would block for ever
        await call(self._redis, "BLPOP", *tokens, f"{block_s:.3f}")

    async def renew(self, worker_id: str, claims: Sequence[Claim]) -> set[str]:
        """Extend the leases; returns the ids of jobs that are no longer this worker's (lost or ended)."""
        held: dict[QueueKeys, list[tuple[str, int]]] = defaultdict(list)
        for claim in claims:
            held[_queue_of(claim)].append((claim.job.id, claim.job.attempt))
        lost: set[str] = set()
        for queue, jobs in held.items():
            answer = await self._renew(
                queue.prefix,
                worker=worker_id,
                lease_s=self._lease_s,
                held=jobs,
                fingerprint=self._fingerprints.get(queue),
            )
            lost.update(job_id.decode() for job_id in answer)
        return lost

    async def show_progress(self, claim: Claim, progress: Progress) -> bool:
        """Tell those who watch the job. False: dropped, the lease was lost."""
        token = _token(claim)
        return bool(await self._publish(_queue_of(claim).prefix, **token, progress=progress.model_dump_json()))

    async def show_preview(self, claim: Claim, sequence: int, preview: Preview, file: bytes) -> bool:
        """Keep a preview for as long as the job runs or its result lives, and tell those who watch.

        `sequence` grows from 1 with each preview of this claim. False: dropped, the lease was lost.
        """
        return bool(
            await self._publish(
                _queue_of(claim).prefix,
                file,
                **_token(claim),
                sequence=sequence,
                preview=preview.model_dump_json(),
            )
        )

    async def succeed(
        self, claim: Claim, images: Sequence[bytes], timings: Timings, provenance: Provenance | None = None
    ) -> bool:
        """Store the encoded files in the order of the samples. False: dropped, the lease was lost."""
        return await self._end(claim, JobState.SUCCEEDED, "timings", timings.model_dump_json(), images, provenance)

    async def fail(self, claim: Claim, error: JobError) -> bool:
        """End the job with an error. False: dropped, the lease was lost."""
        return await self._end(claim, JobState.FAILED, "error", error.model_dump_json())

    async def expire(self, claim: Claim) -> bool:
        """End the job because its deadline cannot be met. False: dropped, the lease was lost."""
        return await self._end(claim, JobState.EXPIRED, "error", EXPIRED.model_dump_json())

    async def _end(
        self,
        claim: Claim,
        state: JobState,
        field: str,
        value: str,
        images: Sequence[bytes] = (),
        provenance: Provenance | None = None,
    ) -> bool:
        return bool(
            await self._finish(
                _queue_of(claim).prefix,
                *images,
                **_token(claim),
                state=state,
                field=field,
                value=value,
                plan=provenance and provenance.fingerprint,
                provenance=provenance and provenance.model_dump_json(),
                ttl_s=self._lives["dead_ttl_s" if state is JobState.FAILED else "ttl_s"],
            )
        )

    async def release(self, claim: Claim) -> bool:
        """Give the job back, to its old place, not held against it. False: the lease was lost."""
        return bool(await self._release(_queue_of(claim).prefix, **_token(claim)))

    async def sweep(self) -> Swept:
        """Take back the jobs, of any model, whose lease ran out, and end those that wait past their deadline.

        Every worker and every server calls it on a timer.
        """
        swept = Swept()
        for queue in await self._queues():
            answer = await self._sweep(
                queue.prefix,
                expired=EXPIRED.model_dump_json(),
                poisoned=POISONED.model_dump_json(),
                gone=GONE.model_dump_json(),
                **self._lives,
            )
            swept += Swept(*answer)
        return swept

    async def bury(self, worker_id: str) -> Swept:
        """Take back at once what a worker held that is known to be dead."""
        swept = Swept()
        for queue in await self._queues():
            answer = await self._bury(
                queue.prefix, worker=worker_id, poisoned=POISONED.model_dump_json(), **self._lives
            )
            swept += Swept(*answer)
        return swept

    async def _queues(self) -> list[QueueKeys]:
        return [QueueKeys(name.decode()) for name in await call(self._redis, "SMEMBERS", keys.QUEUES)]


def _queue_of(claim: Claim) -> QueueKeys:
    return QueueKeys.of(claim.job.spec.model, claim.job.spec.version)


def _token(claim: Claim) -> dict[str, str | int]:
    return {"id": claim.job.id, "worker": claim.worker_id, "attempt": claim.job.attempt}
