"""Live view of a job while a server watches it: its place in the queue, progress, previews and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call, call_all
from msf_scheduler.job_codec import decode_job
from msf_scheduler.jobs import JobRecord, Preview
from msf_scheduler.keys import QueueKeys
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.scripts import Script

POLL_INTERVAL_S = 1.0  # places in the queue change without notice
EventId = tuple[int, int]  # attempt, sequence: grows over a job's life


@dataclass(frozen=True)
class StoredPreview:
    """One preview, encoded in the job's format."""

    id: EventId
    preview: Preview
    file: bytes


@dataclass(frozen=True)
class JobUpdate:
    """A job as it is now, and its new previews. `position` counts the older jobs in the queue, of a queued job."""

    job: JobRecord
    position: int | None
    previews: tuple[StoredPreview, ...]


class JobWatcher:
    """Watches jobs for one server. Redis keeps what was published, so any server can resume where another stopped."""

    def __init__(self, redis: RedisClient, replies: ReplyReader) -> None:
        self._redis = redis
        self._replies = replies
        self._watch = Script(redis, "watch")

    async def follow(self, job_id: str, after: EventId = (0, 0)) -> AsyncGenerator[JobUpdate, None]:
        """Yield the job now, and again whenever it may have changed (at least every second), until its end.

        Previews up to `after` are left out. A job that does not exist, or no longer does, yields nothing.
        Raises `QueueUnavailable`.
        """
        fields = await call(self._redis, "HGETALL", keys.job(job_id))
        if not fields:
            return
        job = decode_job(fields)
        source = _source_of(job)
        with self._replies.listening(job_id, source) as changed:
            await self._watch({"job": keys.job(job_id)}, id=job_id, reply_to=self._replies.stream)
            while True:
                changed.clear()
                update = await self._read(job, source, after)
                if update is None:
                    return
                after = update.previews[-1].id if update.previews else after
                yield update
                if update.job.state.is_terminal:
                    return
                source = _source_of(update.job)
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), POLL_INTERVAL_S)

    async def _read(self, job: JobRecord, source: str, after: EventId) -> JobUpdate | None:
        attempt, sequence = after
        queue = QueueKeys.of(job.spec.model, job.spec.version)
        fields, progress, position, entries = await call_all(
            self._redis,
            ("HGETALL", keys.job(job.id)),  # before the previews: those of a job that has ended are all there
            ("HGET", keys.job(source), "progress"),
            ("ZRANK", queue.waiting, source),
            ("XRANGE", keys.previews(source), f"({attempt}-{sequence}", "+"),
        )
        if not fields:
            return None
        job = decode_job(fields if progress is None else {**fields, b"progress": progress})
        previews = [_decode_preview(entry_id, entry) for entry_id, entry in entries]
        return JobUpdate(job, position, tuple(p for p in previews if p.preview.number < job.terms.num_previews))


def _source_of(job: JobRecord) -> str:
    """Return the id of the job whose progress and previews are also this job's."""
    return job.leader or job.images_of or job.id


def _decode_preview(entry_id: bytes, entry: dict[bytes, bytes]) -> StoredPreview:
    attempt, sequence = entry_id.decode().split("-")
    preview = Preview.model_validate_json(entry[b"preview"])
    return StoredPreview((int(attempt), int(sequence)), preview, entry[b"file"])
