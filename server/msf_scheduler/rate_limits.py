"""Limits and usage of API keys, counted in Redis for all servers together."""

from __future__ import annotations

from dataclasses import dataclass

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.errors import LimitExceeded
from msf_scheduler.scripts import Script, by_name


@dataclass(frozen=True)
class RateLimits:
    """Limits of one key; None is unlimited. A minute's requests may come at once, and are refilled evenly.

    A day is the 24 hours from the first sample counted in it.
    """

    requests_per_minute: int | None = None
    samples_per_day: int | None = None
    concurrent_sample_steps: int | None = None  # queued or running at once; kept by admission


@dataclass(frozen=True)
class RequestAllowance:
    """Requests that a key with a limit may make at once, and the seconds until these are as many as the limit."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True)
class UsageTotals:
    """Totals since the first request; samples and sample steps are those of accepted jobs."""

    requests: int
    refused: int
    samples: int
    sample_steps: int


class UsageMeter:
    """Counter of requests and samples by key. Every method raises `QueueUnavailable` when Redis cannot be used."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._charge = Script(redis, "charge")
        self._refund = Script(redis, "refund")

    async def charge_request(
        self, name: str, limits: RateLimits
    ) -> tuple[RequestAllowance | None, LimitExceeded | None]:
        """Count one request of key `name`. Return what a key with a limit has left, and a refusal if it is used up.

        A refused request does not count towards the limits.
        """
        return await self._count(name, limits, requests=1)

    async def charge_job(self, name: str, limits: RateLimits, *, samples: int, sample_steps: int) -> None:
        """Count the samples of a job of key `name`, or raise `LimitExceeded`."""
        _, refusal = await self._count(name, limits, samples=samples, sample_steps=sample_steps)
        if refusal is not None:
            raise refusal

    async def _count(
        self, name: str, limits: RateLimits, *, requests: int = 0, samples: int = 0, sample_steps: int = 0
    ) -> tuple[RequestAllowance | None, LimitExceeded | None]:
        reply = await self._charge(
            {"usage": f"{keys.USAGE}{name}"},
            requests=requests,
            samples=samples,
            sample_steps=sample_steps,
            requests_per_minute=limits.requests_per_minute,
            samples_per_day=limits.samples_per_day,
        )
        values = by_name(reply)
        allowance = refusal = None
        if limits.requests_per_minute is not None:
            allowance = RequestAllowance(limits.requests_per_minute, values["remaining"], float(values["reset_s"]))
        if "limit" in values:
            limit = values["limit"].decode()
            refusal = LimitExceeded(limit, getattr(limits, limit), float(values["retry_after_s"]))
        return allowance, refusal

    async def refund(self, name: str, *, samples: int, sample_steps: int) -> None:
        """Take back the samples of a charged job that was not admitted."""
        await self._refund({"usage": f"{keys.USAGE}{name}"}, samples=samples, sample_steps=sample_steps)

    async def usage(self, name: str) -> UsageTotals:
        """Return the totals of key `name`."""
        fields = ("requests", "refused", "samples", "sample_steps")
        counts = await call(self._redis, "HMGET", f"{keys.USAGE}{name}", *fields)
        return UsageTotals(*(int(count or 0) for count in counts))
