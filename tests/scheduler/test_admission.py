from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_scheduler.connection import check, connect
from msf_scheduler.errors import LimitExceeded, MemoryFull, QueueFull, QueueUnavailable
from msf_scheduler.jobs import MAX_SEED, SCHEMA_VERSION, JobError, JobRecord, JobState, Provenance, Terms
from msf_scheduler.keys import OPEN_STEPS, RESERVED, QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, QueueDepth, new_job_id
from tests.scheduler.support import MODEL, REPLIES, TIMINGS, VERSION, admit, claim, spec

PROVENANCE = Provenance(fingerprint="plan", reproducibility="fast")


async def test_the_limit_is_exact_under_concurrency(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_samples=100)
    outcomes = await asyncio.gather(*(admit(queue, 3) for _ in range(200)), return_exceptions=True)

    accepted = [outcome for outcome in outcomes if isinstance(outcome, JobRecord)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
    assert (len(accepted), len(refused)) == (33, 167)
    assert {(full.model, full.num_samples, full.limit) for full in refused} == {(MODEL, 99, 100)}
    assert (await queue.depth(MODEL, VERSION)).num_samples == 99

    await admit(queue, 1)
    with pytest.raises(QueueFull):
        await admit(queue, 1)


async def test_a_refusal_leaves_no_trace(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_samples=1)
    with pytest.raises(QueueFull):
        await queue.admit(spec(2), job_id="refused", reply_to=REPLIES)

    assert await queue.get("refused") is None
    assert await queue.depth(MODEL, VERSION) == QueueDepth(0, 0, 0, 0, 0.0)
    assert not await redis.exists(REPLIES)


async def test_running_jobs_count_towards_the_limit_and_finished_jobs_do_not(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_samples=2)
    await admit(queue, 2)
    [lease] = await claim(Leases(redis))
    with pytest.raises(QueueFull):
        await admit(queue)

    await Leases(redis).succeed(lease, [b"a", b"b"], TIMINGS)
    await admit(queue, 2)


async def test_each_model_version_has_its_own_limit(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_samples=1)
    await admit(queue)
    await queue.admit(spec(model="letters"), job_id=new_job_id(), reply_to=None)


async def test_an_id_is_admitted_once(redis: Redis) -> None:
    queue = JobQueue(redis)
    first = await queue.admit(spec(2), job_id="same", reply_to=None)
    assert await queue.admit(spec(2), job_id="same", reply_to=None) == first
    assert (await queue.depth(MODEL, VERSION)).num_samples == 2
    assert len(await claim(Leases(redis), num_samples=10)) == 1


async def test_a_record_survives_the_round_trip(redis: Redis) -> None:
    queue = JobQueue(redis)
    admitted = await queue.admit(spec(4, seed=MAX_SEED), job_id=new_job_id(), reply_to=None)
    assert admitted == await queue.get(admitted.id)
    assert admitted.spec == spec(4, seed=MAX_SEED)
    assert (admitted.state, admitted.attempt, admitted.schema_version) == (JobState.QUEUED, 0, SCHEMA_VERSION)


@pytest.mark.parametrize(
    ("done", "busy_s", "expected_s"),
    [(400, 200, 10.0), (4000, 20, 1.0), (1, 200, 60.0), (0, 0, 1.0)],
    ids=["measured", "at least a second", "at most a minute", "nothing known yet"],
)
async def test_retry_after_follows_the_measured_rate(redis: Redis, done: int, busy_s: int, expected_s: float) -> None:
    queue = JobQueue(redis, max_queued_samples=20)
    await admit(queue, 20)
    seconds, _ = await redis.time()
    counters = f"{QueueKeys.of(MODEL, VERSION).prefix}counters"
    await redis.hset(counters, "rate_samples", done)
    await redis.hset(counters, "rate_seconds", busy_s)
    await redis.hset(counters, "rate_at", int(seconds) + 3600)  # no time has passed since

    with pytest.raises(QueueFull) as caught:
        await admit(queue, 20)
    assert caught.value.retry_after_s == pytest.approx(expected_s)


async def test_idle_time_does_not_lower_the_measured_rate(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_samples=20)
    seconds, _ = await redis.time()
    counters = f"{QueueKeys.of(MODEL, VERSION).prefix}counters"
    await redis.hset(counters, mapping={"rate_samples": 400, "rate_seconds": 200, "rate_at": int(seconds) - 3600})
    await admit(queue, 20)
    with pytest.raises(QueueFull) as caught:
        await admit(queue, 20)
    assert caught.value.retry_after_s == pytest.approx(10, rel=0.2)


async def test_the_rate_counts_finished_samples(redis: Redis) -> None:
    queue = JobQueue(redis)
    await admit(queue, 2)
    await admit(queue, 3)
    for lease in await claim(Leases(redis), num_samples=5):
        await Leases(redis).succeed(lease, [], TIMINGS)
    done = await redis.hget(f"{QueueKeys.of(MODEL, VERSION).prefix}counters", "rate_samples")
    assert float(done or 0) == pytest.approx(5, rel=0.5)


async def test_a_full_redis_refuses_new_jobs_and_finishes_what_it_accepted(redis: Redis) -> None:
    """Admission reserves memory for results, so it refuses before memory is exhausted."""
    queue, leases = JobQueue(redis), Leases(redis)
    size = 1_000_000
    try:
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 5 * size)
        await admit(queue, result_bytes=size)
        await admit(queue, result_bytes=size)
        with pytest.raises(MemoryFull, match="MiB"):
            await admit(queue, result_bytes=3 * size)
        await redis.config_set("maxmemory", used)
        finished, released = await claim(leases, num_samples=2)
        assert await leases.renew("worker-1", [finished, released]) == set()
        assert await leases.succeed(finished, [b"i" * size], TIMINGS)
        assert await leases.release(released)
        with pytest.raises((MemoryFull, QueueUnavailable)):
            await admit(queue)
    finally:
        await redis.config_set("maxmemory", "1gb")
    await admit(queue)


async def test_reserved_bytes_are_released_at_every_end(redis: Redis) -> None:
    queue, leases = JobQueue(redis), Leases(redis)
    for _ in range(3):
        await admit(queue, result_bytes=1000)
    succeeded, failed = await claim(leases, num_samples=2)
    await leases.succeed(succeeded, [b"image"], TIMINGS)
    await leases.fail(failed, JobError(code="broken", message=""))
    assert await redis.get(RESERVED) == b"1000"
    [last] = await claim(leases)
    await queue.cancel(last.job.id)
    assert await redis.get(RESERVED) == b"0"


async def test_an_unreachable_redis_is_reported_without_its_password() -> None:
    async with connect("redis://user:secret@127.0.0.1:1/0") as redis:
        with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:1") as caught:
            await admit(JobQueue(redis))
    assert "secret" not in str(caught.value)


async def test_check_refuses_a_redis_that_may_evict_jobs(redis: Redis) -> None:
    await check(redis)
    try:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(QueueUnavailable, match="noeviction"):
            await check(redis)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


async def test_check_refuses_a_redis_without_functions() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reply to every command as Redis 6 does to FUNCTION."""
        while line := await reader.readline():
            if line.startswith(b"*"):
                writer.write(b"-ERR unknown command `FUNCTION`\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with connect(f"redis://{host}:{port}/0") as redis:
            with pytest.raises(QueueUnavailable, match="need Redis 7 or later, or Valkey"):
                await check(redis)


def test_a_bad_url_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="redis://"):
        connect("http://localhost")


async def ask(queue: JobQueue, seed: int, num_samples: int = 1, tenant: str = "a") -> JobRecord:
    """Admit a job of ten steps a sample, for a tenant that may have 30 sample steps at once."""
    return await queue.admit(
        spec(num_samples, seed=seed),
        Terms(tenant=tenant),
        job_id=new_job_id(),
        reply_to=None,
        fingerprint="plan",
        max_open_steps=30,
    )


async def test_a_tenants_sample_steps_at_once_are_limited(redis: Redis) -> None:
    queue, leases = JobQueue(redis), Leases(redis)
    for seed in (1, 2):
        await ask(queue, seed)
    with pytest.raises(LimitExceeded, match="concurrent_sample_steps of 30") as caught:
        await ask(queue, 3, 2)
    assert caught.value.retry_after_s >= 1
    await ask(queue, 3)
    await ask(queue, 9, 3, tenant="b")
    with pytest.raises(LimitExceeded):
        await ask(queue, 4)
    [lease] = await claim(leases)
    with pytest.raises(LimitExceeded):
        await ask(queue, 4)
    await leases.succeed(lease, [b"image"], TIMINGS, PROVENANCE)
    await ask(queue, 4)


async def test_the_limit_is_over_all_models(redis: Redis) -> None:
    queue = JobQueue(redis)
    await ask(queue, 1, 3)
    with pytest.raises(LimitExceeded):
        await queue.admit(
            spec(model="letters"), Terms(tenant="a"), job_id=new_job_id(), reply_to=None, max_open_steps=30
        )


async def test_shared_and_cached_jobs_count_what_they_cost(redis: Redis) -> None:
    queue, leases = JobQueue(redis), Leases(redis)
    first = await ask(queue, 1, 3)
    await ask(queue, 1, 3)
    follower = await ask(queue, 1, 3, tenant="b")
    await ask(queue, 2, 3, tenant="b")
    await queue.cancel(first.id)  # its own follower does the work now
    with pytest.raises(LimitExceeded):
        await ask(queue, 3)
    await queue.cancel(follower.id)
    lease, *others = await claim(leases, num_samples=6)
    for each in (lease, *others):
        await leases.succeed(each, [b"image"] * 3, TIMINGS, PROVENANCE)
    for _ in range(3):
        assert (await ask(queue, 1, 3)).state is JobState.SUCCEEDED
    assert not await redis.exists(OPEN_STEPS)


async def test_a_tenants_stored_jobs_are_limited(redis: Redis) -> None:
    queue, leases = JobQueue(redis, max_stored_jobs=2), Leases(redis, result_ttl_s=0.0)
    for _ in range(2):
        await admit(queue, tenant="a")
    [lease, _] = await claim(leases, num_samples=2)
    await leases.succeed(lease, [b"image"], TIMINGS, PROVENANCE)
    with pytest.raises(LimitExceeded, match="stored_jobs of 2") as caught:
        await admit(queue, tenant="a")
    assert caught.value.retry_after_s >= 1
    await admit(queue, tenant="b")
    await leases.sweep()  # forgets the job that has ended
    await admit(queue, tenant="a")


async def test_a_tenants_webhooks_that_are_not_delivered_are_limited(redis: Redis) -> None:
    queue = JobQueue(redis, max_pending_webhooks=1)
    await admit(queue, tenant="a", webhook_url="https://example.com")
    with pytest.raises(LimitExceeded, match="pending_webhooks of 1"):
        await admit(queue, tenant="a", webhook_url="https://another.example.com")
    await admit(queue, tenant="a")
    await admit(queue, tenant="b", webhook_url="https://example.com")
