"""Queue of jobs in Redis, as workers use it: claim, renew, finish or give back.

A lease is identified by worker id and `attempt` together: a worker that lost it can no longer change the job.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msf_scheduler import keys
from msf_scheduler.claims import EXPIRED, GONE, POISONED, Claim, ClaimRequest, ClaimResult, JobEnd, SweepResult
from msf_scheduler.connection import MAX_BLOCK_S, RedisClient, call, call_blocking
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.job_codec import decode_job
from msf_scheduler.jobs import (
    JobError,
    JobRecord,
    JobState,
    ModelKey,
    Preview,
    Priority,
    Progress,
    Provenance,
    Terms,
    Timings,
)
from msf_scheduler.keys import QueueKeys
from msf_scheduler.scripts import Invocation, Script, by_name, call_all
from msf_scheduler.tunables import (
    DEAD_LETTER_TTL_S,
    LEASE_S,
    MAX_HELD_LANES,
    MAX_LEASES_RENEWED,
    MAX_STORED_BYTES,
    RESULT_TTL_S,
)


class Leases:
    """Leases of one worker, and the upkeep of all.

    Every method raises `QueueUnavailable` when Redis cannot be used; the call may then have taken effect or not.
    """

    def __init__(
        self,
        redis: RedisClient,
        *,
        lease_s: float = LEASE_S,
        result_ttl_s: float = RESULT_TTL_S,
        fingerprints: Mapping[ModelKey, str] | None = None,
    ) -> None:
        """`fingerprints`, by model version, are the worker's: it may claim the jobs bound to them."""
        self._redis = redis
        self._fingerprints = {QueueKeys.of(*model): value for model, value in (fingerprints or {}).items()}
        self._waiter = secrets.token_hex(8)
        self._limits: dict[QueueKeys, str] = {}  # that ended the last claim
        self._lease_s = lease_s
        self._result_ttl_s = result_ttl_s
        self._renew = Script(redis, "renew")
        self._release = Script(redis, "release")
        self._sweep = Script(redis, "sweep")
        self._reclaim = Script(redis, "reclaim")
        self._publish = Script(redis, "publish")

    def set_fingerprint(self, model: ModelKey, fingerprint: str) -> None:
        """Let this worker claim the jobs of a model version that are bound to the fingerprint."""
        self._fingerprints[QueueKeys.of(*model)] = fingerprint

    async def claim(
        self,
        worker_id: str,
        model: str,
        version: str,
        *,
        budget_steps: int,
        held: Collection[tuple[Priority, str]],
        max_samples: int,
        idle: bool,
    ) -> ClaimResult:
        """Claim from one model version, as `claim_many` does."""
        request = ClaimRequest((model, version), budget_steps, held, max_samples)
        [result] = await self.claim_many(worker_id, [request], idle=idle)
        return result

    async def claim_many(self, worker_id: str, requests: Sequence[ClaimRequest], *, idle: bool) -> list[ClaimResult]:
        """Lease the next jobs of several model versions, for a worker that holds jobs in one round trip.

        `idle`: the worker holds no job of any model; only then does it get a suspect, and with it nothing else. One
        call leases a limited number of jobs; claim again while it leases any.
        """
        if not idle:
            return await self._claim_at_once(worker_id, requests, idle=False)
        results: list[ClaimResult] = []
        for request in requests:
            if any(result.alone for result in results):
                results.append(ClaimResult())
            else:
                is_idle = not any(result.claims for result in results)
                try:
                    results += await self._claim_at_once(worker_id, [request], idle=is_idle)
                except QueueUnavailable:
                    if is_idle:
                        raise
                    results.append(ClaimResult())  # the jobs that were leased before must be run
        return results

    async def _claim_at_once(
        self, worker_id: str, requests: Sequence[ClaimRequest], *, idle: bool
    ) -> list[ClaimResult]:
        replies = await call_all(self._redis, [self._claim_command(worker_id, request, idle) for request in requests])
        results = []
        for request, reply in zip(requests, map(by_name, replies), strict=True):
            self._limits[QueueKeys.of(*request.model)] = reply["limit"].decode()
            claims = tuple(
                Claim(_served_under(Terms.model_validate_json(terms), decode_job(fields)), worker_id)
                for fields, terms in zip(reply["jobs"], reply["terms"], strict=True)
            )
            lacks_room = reply["limit"] == b"room"
            results.append(ClaimResult(claims, bool(reply["alone"]), reply["num_expired"], lacks_room))
        return results

    def _claim_command(self, worker_id: str, request: ClaimRequest, idle: bool) -> Invocation:
        queue = QueueKeys.of(*request.model)
        lanes = set(request.held)
        num_lanes = Counter(priority for priority, _ in lanes)
        full = {priority for priority, count in num_lanes.items() if count > MAX_HELD_LANES}
        arguments = {
            "worker": worker_id,
            "waiter": self._waiter,
            "budget_steps": request.budget_steps,
            "held": [(priority.rank, tenant) for priority, tenant in lanes if priority not in full],
            "full_classes": [priority.rank for priority in full],
            "max_samples": request.max_samples,
            "lease_s": self._lease_s,
            "idle": idle,
            "fingerprint": self._fingerprints.get(queue),
            "expired": EXPIRED.model_dump_json(),
            "ttl_s": self._result_ttl_s,
        }
        return Invocation("claim", {"queue": queue.prefix}, arguments)

    async def wait_for_work(
        self, open_models: Sequence[ModelKey], full_models: Sequence[ModelKey], timeout_s: float
    ) -> None:
        """Return when a `claim` may find work, or after `timeout_s`.

        Of `open_models` that is any work. Of `full_models`, claimed from with a budget of 0, and of those whose next
        job did not fit into `max_samples`, it is the first job of a priority class and tenant: claim as soon as work
        has ended. The wait never exceeds `MAX_BLOCK_S`; claim again in any case, also after cancelling it. Of several
        waiting workers one returns, and the next when its claim leaves work.
        """
        tokens: list[str] = []
        for model in (*open_models, *full_models):
            queue = QueueKeys.of(*model)
            limit = self._limits.get(queue)
            if limit == "room" or (limit == "budget" and model in full_models):
                tokens.append(queue.newcomer_token(self._waiter))
            else:
                tokens += [queue.wake(), *self._bound_wakes(queue)]
        block_s = max(min(timeout_s, MAX_BLOCK_S), 0.001)  # 0 would block without limit
        if tokens:
            await call_blocking(self._redis, "BLPOP", *tokens, f"{block_s:.3f}")
        else:
            await asyncio.sleep(block_s)

    def _bound_wakes(self, queue: QueueKeys) -> list[str]:
        return [queue.wake(self._fingerprints[queue])] if queue in self._fingerprints else []

    async def renew(self, worker_id: str, claims: Sequence[Claim]) -> set[str]:
        """Extend the leases; return the ids of jobs whose lease was lost, or that ended."""
        leases: dict[QueueKeys, list[tuple[str, int]]] = defaultdict(list)
        for claim in claims:
            leases[claim.queue].append((claim.job.id, claim.job.attempt))
        lost: set[str] = set()
        for queue, pairs in leases.items():
            for start in range(0, len(pairs), MAX_LEASES_RENEWED):
                job_ids = await self._renew(
                    {"queue": queue.prefix},
                    worker=worker_id,
                    lease_s=self._lease_s,
                    leases=pairs[start : start + MAX_LEASES_RENEWED],
                    fingerprint=self._fingerprints.get(queue),
                )
                lost.update(job_id.decode() for job_id in job_ids)
        return lost

    async def publish_progress(self, claim: Claim, progress: Progress) -> bool:
        """Store the progress and notify watchers. Return False if the lease was lost."""
        return await self._publish_fields(claim, progress=progress.model_dump_json())

    async def publish_preview(self, claim: Claim, sequence: int, preview: Preview, file: bytes) -> bool:
        """Store a preview until the job's result is forgotten, and notify watchers. Return False if the lease was lost.

        `sequence` grows from 1 with each preview of this claim.
        """
        return await self._publish_fields(claim, file, sequence=sequence, preview=preview.model_dump_json())

    async def _publish_fields(self, claim: Claim, *blobs: bytes, **fields: Any) -> bool:
        job_id = claim.job.id
        key: dict[str, str | None] = {"job": keys.job(job_id), "previews": keys.previews(job_id)}
        return bool(await self._publish(key, *blobs, **claim.token, **fields))

    async def succeed(
        self, claim: Claim, images: Sequence[bytes], timings: Timings, provenance: Provenance | None = None
    ) -> bool:
        """Store the encoded files in the order of the samples. Return False if the lease was lost."""
        return await self._finish(JobEnd(claim, JobState.SUCCEEDED, timings, images, provenance))

    async def fail(self, claim: Claim, error: JobError) -> bool:
        """End the job with an error. Return False if the lease was lost."""
        return await self._finish(JobEnd(claim, JobState.FAILED, error))

    async def expire(self, claim: Claim) -> bool:
        """End the job because its deadline cannot be met. Return False if the lease was lost."""
        return await self._finish(JobEnd(claim, JobState.EXPIRED, EXPIRED))

    async def _finish(self, end: JobEnd) -> bool:
        [is_stored] = await self.finish_many([end])
        return is_stored

    async def finish_many(self, ends: Sequence[JobEnd]) -> list[bool]:
        """End several jobs in one round trip. Return, for each, False if the lease was lost.

        After `QueueUnavailable` some may have ended; to repeat the call returns False for these.
        """
        commands = [self._finish_commands(end) for end in ends]
        replies = iter(await call_all(self._redis, [command for each in commands for command in each]))
        return [bool([next(replies) for _ in each][-1]) for each in commands]

    def _finish_commands(self, end: JobEnd) -> list[Invocation]:
        """Return the commands that store the images piece by piece, of which the last ends the job."""
        job_id, queue, provenance = end.claim.job.id, end.claim.queue, end.provenance
        arguments = {
            **end.claim.token,
            "state": end.state,
            "result": "timings" if isinstance(end.result, Timings) else "error",
            "value": end.result.model_dump_json(),
            "fingerprint": provenance and provenance.fingerprint,
            "provenance": provenance and provenance.model_dump_json(),
            "ttl_s": DEAD_LETTER_TTL_S if end.state is JobState.FAILED else self._result_ttl_s,
        }
        names = {"job": keys.job(job_id), "images": keys.images(job_id)}
        *earlier, last = _pieces(end.images)
        commands = [
            Invocation("store_images", names, {**end.claim.token, "is_first": number == 0}, piece)
            for number, piece in enumerate(earlier)
        ]
        names = {"queue": queue.prefix, **names}
        return [*commands, Invocation("finish", names, {**arguments, "is_first": not earlier}, last)]

    async def release(self, claim: Claim) -> bool:
        """Return the job to its place in the queue without prejudice. Return False if the lease was lost."""
        key: dict[str, str | None] = {"queue": claim.queue.prefix, "job": keys.job(claim.job.id)}
        return bool(await self._release(key, **claim.token))

    async def sweep(self) -> SweepResult:
        """Take back the jobs of any model whose lease ran out, and end those that wait past their deadline.

        Every worker and every server calls it on a timer.
        """
        return await self._for_each_queue(
            self._sweep,
            expired=EXPIRED.model_dump_json(),
            poisoned=POISONED.model_dump_json(),
            gone=GONE.model_dump_json(),
            ttl_s=self._result_ttl_s,
            dead_ttl_s=DEAD_LETTER_TTL_S,
        )

    async def reclaim(self, worker_id: str) -> SweepResult:
        """Take back at once the jobs of a worker that is known to be dead."""
        return await self._for_each_queue(
            self._reclaim, worker=worker_id, poisoned=POISONED.model_dump_json(), dead_ttl_s=DEAD_LETTER_TTL_S
        )

    async def _for_each_queue(self, script: Script, **arguments: Any) -> SweepResult:
        total = SweepResult()
        for name in await call(self._redis, "SMEMBERS", keys.QUEUES):
            queue, is_done, start = QueueKeys(name.decode()), False, 0
            while not is_done:
                reply = await script({"queue": queue.prefix}, name=queue.name, start=start, **arguments)
                counts = by_name(reply)
                is_done, start = bool(counts.pop("is_done")), counts.pop("start", 0)
                total += SweepResult(**counts)
        return total


def _served_under(terms: Terms, job: JobRecord) -> JobRecord:
    return job.model_copy(update={"terms": job.terms.served_as(terms)})


def _pieces(images: Sequence[bytes]) -> list[list[bytes]]:
    """Divide images into pieces of at most MAX_STORED_BYTES, or one image; without images there is one empty piece."""
    pieces: list[list[bytes]] = [[]]
    num_bytes = 0
    for image in images:
        num_bytes += len(image)
        if pieces[-1] and num_bytes > MAX_STORED_BYTES:
            pieces.append([])
            num_bytes = len(image)
        pieces[-1].append(image)
    return pieces
