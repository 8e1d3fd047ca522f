"""Helpers of the scheduler's tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product

from msf_scheduler import keys
from msf_scheduler.claims import Claim, ClaimResult
from msf_scheduler.connection import RedisClient, call, server_info
from msf_scheduler.jobs import JobRecord, JobSpec, Priority, Terms, Timings
from msf_scheduler.keys import QueueKeys
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue, new_job_id
from tests.polling import eventually

MODEL, VERSION = "shapes", "1"
NUM_STEPS = 10
Lane = tuple[Priority, str]
TENANTS = ("", "a", "b", "c", "busy", "few", "flood", "heavy", "light", "newcomer", "other", "sleeper", "team")
ALL_LANES: tuple[Lane, ...] = tuple(product(Priority, TENANTS))
REPLIES = f"{keys.REPLIES}test"  # stream
TIMINGS = Timings(queue_ms=1.5, base_ms=2, residual_ms=3, decode_ms=4, encode_ms=5, total_ms=16)


def spec(num_samples: int = 1, seed: int = 7, model: str = MODEL, num_steps: int = NUM_STEPS) -> JobSpec:
    return JobSpec(
        model=model,
        version=VERSION,
        label=3,
        num_samples=num_samples,
        seed=seed,
        num_steps=num_steps,
        guidance_scale=1.1,
    )


async def admit(
    queue: JobQueue,
    num_samples: int = 1,
    reply_to: str | None = None,
    *,
    tenant: str = "",
    user: str = "",
    weight: float = 1.0,
    priority: Priority = Priority.NORMAL,
    timeout_s: float | None = None,
    webhook_url: str | None = None,
    least_s: float = 0.0,
    num_steps: int = NUM_STEPS,
    result_bytes: int = 0,
) -> JobRecord:
    terms = Terms(
        priority=priority, tenant=tenant, user=user, weight=weight, timeout_s=timeout_s, webhook_url=webhook_url
    )
    return await queue.admit(
        spec(num_samples, num_steps=num_steps),
        terms,
        job_id=new_job_id(),
        reply_to=reply_to,
        least_s=least_s,
        result_bytes=result_bytes,
    )


async def claim(
    leases: Leases, worker_id: str = "worker-1", num_samples: int = 1, held: Iterable[Lane] = ALL_LANES
) -> list[Claim]:
    """Claim, in turn alone, jobs of `num_samples` or more, for a worker that holds others."""
    return list((await try_claim(leases, worker_id, num_samples, held=held, idle=False)).claims)


async def try_claim(
    leases: Leases,
    worker_id: str,
    num_samples: int,
    *,
    idle: bool,
    held: Iterable[Lane] = ALL_LANES,
    max_samples: int = 1000,
) -> ClaimResult:
    """Claim jobs for as many sample steps as `num_samples` samples of the default number of steps have."""
    return await leases.claim(
        worker_id,
        MODEL,
        VERSION,
        budget_steps=NUM_STEPS * num_samples,
        held=list(held),
        max_samples=max_samples,
        idle=idle,
    )


def ids(claims: Sequence[Claim]) -> list[str]:
    return [claim.job.id for claim in claims]


async def stored(queue: JobQueue, job_id: str) -> JobRecord:
    record = await queue.get(job_id)
    assert record is not None
    return record


async def images_of(queue: JobQueue, job_id: str) -> list[bytes]:
    return await queue.images(await stored(queue, job_id))


async def replies(redis: RedisClient, stream: str = REPLIES) -> list[tuple[str, str]]:
    """Return the job id and state of every reply."""
    entries = await call(redis, "XRANGE", stream, "-", "+")
    return [(entry[b"job"].decode(), entry[b"state"].decode()) for _, entry in entries]


async def queue_keys(redis: RedisClient) -> set[str]:
    """Return the existing keys of the queue, without their prefix."""
    prefix = QueueKeys.of(MODEL, VERSION).prefix
    return {key.decode().removeprefix(prefix) for key in await call(redis, "KEYS", f"{prefix}*")}


async def until_blocked(redis: RedisClient, num_clients: int) -> None:
    """Wait until `num_clients` clients wait in a blocking read."""

    async def is_blocked() -> bool:
        return int((await server_info(redis, "clients"))["blocked_clients"]) == num_clients

    await eventually(is_blocked)
