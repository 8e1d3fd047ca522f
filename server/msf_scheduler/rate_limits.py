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

    async def charge_request(self, name: str, limits: RateLimits) -> None:
        """Count one request of key `name`, or raise `LimitExceeded`; a refusal does not count towards the limits."""
        await self._count(name, limits, requests=1)

    async def charge_job(self, name: str, limits: RateLimits, *, samples: int, sample_steps: int) -> None:
        """Count the samples of a job of key `name`, or raise `LimitExceeded`."""
        await self._count(name, limits, samples=samples, sample_steps=sample_steps)

    async def _count(
        self, name: str, limits: RateLimits, *, requests: int = 0, samples: int = 0, sample_steps: int = 0
    ) -> None:
        reply = await self._charge(
            {"usage": f"{keys.USAGE}{name}"},
            requests=requests,
            samples=samples,
            sample_steps=sample_steps,
            requests_per_minute=limits.requests_per_minute,
            samples_per_day=limits.samples_per_day,
        )
        if reply:
            refusal = by_name(reply)
            limit = refusal["limit"].decode()
            raise LimitExceeded(limit, getattr(limits, limit), float(refusal["retry_after_s"]))

    async def refund(self, name: str, *, samples: int, sample_steps: int) -> None:
        """Take back the samples of a charged job that was not admitted."""
        await self._refund({"usage": f"{keys.USAGE}{name}"}, samples=samples, sample_steps=sample_steps)

    async def usage(self, name: str) -> UsageTotals:
        """Return the totals of key `name`."""
        fields = ("requests", "refused", "samples", "sample_steps")
        counts = await call(self._redis, "HMGET", f"{keys.USAGE}{name}", *fields)
        return UsageTotals(*(int(count or 0) for count in counts))
