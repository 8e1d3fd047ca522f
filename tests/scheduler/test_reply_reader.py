from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from msf_scheduler import reply_reader as replies
from msf_scheduler.connection import call, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobError, JobState
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.reply_reader import ReplyReader
from tests.polling import eventually
from tests.scheduler.support import TIMINGS, claim, spec, until_blocked


@asynccontextmanager
async def running(reader: ReplyReader) -> AsyncIterator[None]:
    task = asyncio.create_task(reader.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def reader(redis: Redis) -> ReplyReader:
    return ReplyReader(redis, "server-1")


async def admit_awaited(queue: JobQueue, reader: ReplyReader) -> tuple[str, asyncio.Future[JobState]]:
    job_id = new_job_id()
    future = reader.expect(job_id)
    await queue.admit(spec(), job_id=job_id, reply_to=reader.stream)
    return job_id, future


async def test_one_reader_resolves_many_jobs(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    async with running(reader), asyncio.timeout(20):
        jobs = await asyncio.gather(*(admit_awaited(queue, reader) for _ in range(300)))
        while claims := await claim(Leases(redis), num_samples=300):
            for lease in claims:
                if lease.job.id == jobs[0][0]:
                    await Leases(redis).fail(lease, JobError(code="broken", message=""))
                else:
                    await Leases(redis).succeed(lease, [b"image"], TIMINGS)
        states = await asyncio.gather(*(future for _, future in jobs))
    assert states == [JobState.FAILED] + 299 * [JobState.SUCCEEDED]


async def test_cancelled_and_expired_jobs_are_answered(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    async with running(reader), asyncio.timeout(20):
        cancelled_id, cancelled = await admit_awaited(queue, reader)
        expired_id, expired = await admit_awaited(queue, reader)
        await queue.cancel(cancelled_id)
        await queue.expire(expired_id)
        assert await cancelled is JobState.CANCELLED
        assert await expired is JobState.EXPIRED


async def test_each_server_gets_replies_about_its_own_jobs(redis: Redis, reader: ReplyReader) -> None:
    queue, other = JobQueue(redis), ReplyReader(redis, "server-2")
    async with running(reader), running(other), asyncio.timeout(20):
        _, mine = await admit_awaited(queue, reader)
        _, theirs = await admit_awaited(queue, other)
        first, second = await claim(Leases(redis), num_samples=2)
        await Leases(redis).succeed(second, [], TIMINGS)
        assert await theirs is JobState.SUCCEEDED
        assert not mine.done()
        await Leases(redis).succeed(first, [], TIMINGS)
        assert await mine is JobState.SUCCEEDED


async def test_stopping_the_reader_loses_nothing(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    futures = []
    for _ in range(20):
        async with running(reader):
            futures.append((await admit_awaited(queue, reader))[1])
            [lease] = await claim(Leases(redis))
            await Leases(redis).succeed(lease, [], TIMINGS)
    async with running(reader), asyncio.timeout(20):
        assert set(await asyncio.gather(*futures)) == {JobState.SUCCEEDED}


async def test_forgetting_a_job_does_not_affect_others(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    async with running(reader), asyncio.timeout(20):
        job_id, forgotten = await admit_awaited(queue, reader)
        _, awaited = await admit_awaited(queue, reader)
        reader.forget(job_id, forgotten)
        for lease in await claim(Leases(redis), num_samples=2):
            await Leases(redis).succeed(lease, [], TIMINGS)
        assert await awaited is JobState.SUCCEEDED
    assert forgotten.cancelled()


async def test_several_may_wait_for_one_job(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    async with running(reader), asyncio.timeout(20):
        job_id, first = await admit_awaited(queue, reader)
        second, third = reader.expect(job_id), reader.expect(job_id)
        reader.forget(job_id, first)
        for lease in await claim(Leases(redis)):
            await Leases(redis).succeed(lease, [], TIMINGS)
        assert (await second, await third) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert first.cancelled()


async def test_records_resolve_futures_when_the_stream_is_lost(redis: Redis, reader: ReplyReader) -> None:
    queue = JobQueue(redis)
    _, future = await admit_awaited(queue, reader)
    [lease] = await claim(Leases(redis))
    await Leases(redis).succeed(lease, [], TIMINGS)
    await redis.delete(reader.stream)
    async with running(reader), asyncio.timeout(20):
        assert await future is JobState.SUCCEEDED


async def test_awaiting_a_job_that_redis_lost_fails(
    redis: Redis, reader: ReplyReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "LOST_AFTER_S", 0.0)
    future = reader.expect("lost")
    async with running(reader), asyncio.timeout(20):
        with pytest.raises(QueueUnavailable, match="lost"):
            await future


async def test_the_reader_survives_a_crash_of_valkey(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as valkey:
        async with connect(valkey.url) as redis, asyncio.timeout(60):
            queue, reader = JobQueue(redis), ReplyReader(redis, "server-1")
            async with running(reader):
                _, before = await admit_awaited(queue, reader)
                _, after = await admit_awaited(queue, reader)
                first, second = await claim(Leases(redis), num_samples=2)
                await Leases(redis).succeed(first, [], TIMINGS)
                assert await before is JobState.SUCCEEDED
                await until_blocked(redis, 1)
                await call(redis, "WAITAOF", 1, 0, 0)  # all writes are on disk
                os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)

                async def finished() -> bool:
                    with suppress(QueueUnavailable):
                        return await Leases(redis).succeed(second, [], TIMINGS)
                    return False

                await eventually(finished)
                assert await after is JobState.SUCCEEDED
