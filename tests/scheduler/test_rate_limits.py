"""Limits of API keys: shared by all servers, and not used up by refusals."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call
from msf_scheduler.errors import LimitExceeded
from msf_scheduler.rate_limits import RateLimits, UsageMeter, UsageTotals


@pytest.fixture
def meter(redis: Redis) -> UsageMeter:
    return UsageMeter(redis)


async def charge(meter: UsageMeter, limits: RateLimits, samples: int = 1, name: str = "a") -> LimitExceeded | None:
    _, refusal = await meter.charge_request(name, limits)
    if refusal is not None:
        return refusal
    try:
        await meter.charge_job(name, limits, samples=samples, sample_steps=10 * samples)
    except LimitExceeded as error:
        return error
    return None


async def pass_time(redis: Redis, seconds: float) -> None:
    """Let the key seem to have been used `seconds` earlier."""
    for field in ("full_at", "day_at"):
        at = float(await call(redis, "HGET", f"{keys.USAGE}a", field))
        await call(redis, "HSET", f"{keys.USAGE}a", field, f"{at - seconds:.6f}")


async def test_a_minutes_requests_may_come_at_once_and_the_next_gets_a_retry_time(
    meter: UsageMeter, redis: Redis
) -> None:
    limits = RateLimits(requests_per_minute=6)
    assert [await charge(meter, limits) for _ in range(6)] == [None] * 6
    refused = await charge(meter, limits)
    assert refused is not None
    assert (refused.name, refused.limit) == ("requests_per_minute", 6)
    assert 0 < refused.retry_after_s <= 10
    await pass_time(redis, 10)
    assert await charge(meter, limits) is None  # a sixth of the minute refills one request
    assert await charge(meter, limits) is not None


async def test_a_request_is_told_how_many_are_left(meter: UsageMeter, redis: Redis) -> None:
    limits = RateLimits(requests_per_minute=6)
    allowances = [(await meter.charge_request("a", limits))[0] for _ in range(7)]
    assert [allowance and allowance.remaining for allowance in allowances] == [5, 4, 3, 2, 1, 0, 0]
    assert [round(allowance.reset_s, -1) for allowance in allowances if allowance] == [10, 20, 30, 40, 50, 60, 60]
    assert await meter.charge_request("b", RateLimits()) == (None, None)


async def test_the_limit_is_exact_under_concurrency(meter: UsageMeter) -> None:
    outcomes = await asyncio.gather(*(charge(meter, RateLimits(requests_per_minute=10)) for _ in range(50)))
    assert outcomes.count(None) == 10
    assert await meter.usage("a") == UsageTotals(requests=10, refused=40, samples=10, sample_steps=100)


async def test_samples_per_day_are_limited(meter: UsageMeter, redis: Redis) -> None:
    limits = RateLimits(samples_per_day=10)
    assert await charge(meter, limits, 8) is None
    refused = await charge(meter, limits, 3)
    assert refused is not None
    assert refused.name == "samples_per_day"
    assert 86_000 < refused.retry_after_s <= 86_400
    assert await charge(meter, limits, 2) is None  # the refusal used nothing up
    await pass_time(redis, 86_400)
    assert await charge(meter, limits, 10) is None


async def test_refunded_samples_can_be_used_again(meter: UsageMeter) -> None:
    limits = RateLimits(samples_per_day=10)
    assert await charge(meter, limits, 10) is None
    await meter.refund("a", samples=10, sample_steps=100)
    assert await meter.usage("a") == UsageTotals(requests=1, refused=0, samples=0, sample_steps=0)
    assert await charge(meter, limits, 10) is None


async def test_a_refund_never_becomes_an_allowance_of_the_next_day(meter: UsageMeter, redis: Redis) -> None:
    limits = RateLimits(samples_per_day=10)
    assert await charge(meter, limits, 10) is None
    await pass_time(redis, 86_400)
    assert await charge(meter, limits, 1) is None  # the first sample of the next day
    await meter.refund("a", samples=10, sample_steps=100)
    assert await charge(meter, limits, 11) is not None


async def test_keys_do_not_share_limits(meter: UsageMeter) -> None:
    limits = RateLimits(requests_per_minute=1)
    assert await charge(meter, limits, name="a") is None
    assert await charge(meter, limits, name="b") is None
    assert await meter.usage("nobody") == UsageTotals(0, 0, 0, 0)


async def test_without_limits_requests_are_counted_and_never_refused(meter: UsageMeter) -> None:
    assert [await charge(meter, RateLimits(), 64) for _ in range(20)] == [None] * 20
    assert await meter.usage("a") == UsageTotals(requests=20, refused=0, samples=1280, sample_steps=12800)
