"""What becomes of a job while somebody watches: its place in the queue, how far it is, its previews, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call, guarded
from msf_scheduler.job_codec import decode_job
from msf_scheduler.jobs import JobRecord, Preview
from msf_scheduler.keys import QueueKeys
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.scripts import Script

LOOK_EVERY_S = 1.0  # places in the queue change without news; an end that an older release stored comes without any
EventId = tuple[int, int]  # attempt, sequence: grows over a job's life


@dataclass(frozen=True)
class StoredPreview:
    """One preview, encoded in the job's format."""

    id: EventId
    preview: Preview
    file: bytes


@dataclass(frozen=True)
class News:
    """A job as it is now, with the previews that are new. `position`, of a queued job: how many others are older."""

    job: JobRecord
    position: int | None
    previews: tuple[StoredPreview, ...]


class Watcher:
    """For servers. Any server can go on where another one left off: what was shown lies in Redis."""

    def __init__(self, redis: Redis, replies: ReplyReader) -> None:
        self._redis = redis
        self._replies = replies
        self._watch = Script(redis, "watch")

    async def follow(self, job_id: str, after: EventId = (0, 0)) -> AsyncGenerator[News, None]:
        """The job as it is, then again whenever it may have changed (each second, if nothing tells), to its end.

        Previews up to `after` are left out. No news at all: there is no such job (any more). Raises `QueueUnavailable`.
        """
        job = await self._get(job_id)
        if job is None:
            return
        queue = QueueKeys.of(job.spec.model, job.spec.version)
        working = job.leader or job.images_of or job_id  # whose previews are this job's
        with self._replies.listening(job_id, working) as changed:
            await self._watch(queue.prefix, id=job_id, reply_to=self._replies.stream)
            while True:
                changed.clear()
                news = await self._look(job_id, working, queue, after)
                if news is None:
                    return
                after = news.previews[-1].id if news.previews else after
                yield news
                if news.job.state.is_terminal:
                    return
                working = news.job.leader or news.job.images_of or job_id
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), LOOK_EVERY_S)

    async def _get(self, job_id: str) -> JobRecord | None:
        fields = await call(self._redis, "HGETALL", keys.job(job_id))
        return decode_job(fields) if fields else None

    async def _look(self, job_id: str, working: str, queue: QueueKeys, after: EventId) -> News | None:
        """In one transaction: the previews of a job that is seen to have ended are all there."""
        attempt, sequence = after
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hgetall(keys.job(job_id))
            pipeline.hget(keys.job(working), "progress")
            pipeline.zrank(queue.waiting, working)
            pipeline.xrange(keys.previews(working), min=f"({attempt}-{sequence}")
            fields, progress, position, entries = await guarded(self._redis, pipeline.execute())
        if not fields:
            return None
        job = decode_job(fields if progress is None else {**fields, b"progress": progress})
        shown = [_stored(entry_id, entry) for entry_id, entry in entries]
        return News(job, position, tuple(each for each in shown if each.preview.number < job.terms.num_previews))


def _stored(entry_id: bytes, entry: dict[bytes, bytes]) -> StoredPreview:
    attempt, sequence = entry_id.decode().split("-")
    preview = Preview.model_validate_json(entry[b"preview"])
    return StoredPreview((int(attempt), int(sequence)), preview, entry[b"file"])
