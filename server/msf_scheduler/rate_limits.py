"""What each API key may use and has used, counted in Redis for all servers together."""

from __future__ import annotations

from dataclasses import dataclass

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call
from msf_scheduler.errors import LimitExceeded
from msf_scheduler.scripts import Script

_COUNTED = ("requests", "refused", "samples", "sample_steps")


@dataclass(frozen=True)
class Limits:
    """None: no limit. A minute's requests may come at once, then as evenly as they are refilled.

    A day is the 24 hours from the first sample that is counted in it.
    """

    requests_per_minute: int | None = None
    samples_per_day: int | None = None


@dataclass(frozen=True)
class Usage:
    """Since the first request: what limits `refused`, and the samples (and sample steps) of accepted jobs."""

    requests: int
    refused: int
    samples: int
    sample_steps: int


class Meter:
    """Every method raises `QueueUnavailable` when Redis cannot be used."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._charge = Script(redis, "charge")
        self._refund = Script(redis, "refund")

    async def charge(self, name: str, limits: Limits, *, samples: int, sample_steps: int) -> None:
        """Count one request of key `name`, or raise `LimitExceeded`; what is refused takes nothing off the limits."""
        refusal, *retry_after_s = await self._charge(
            keys.usage(name),
            samples=samples,
            sample_steps=sample_steps,
            requests_per_minute=limits.requests_per_minute,
            samples_per_day=limits.samples_per_day,
        )
        if refusal == b"requests":
            raise LimitExceeded("requests_per_minute", limits.requests_per_minute or 0, float(retry_after_s[0]))
        if refusal == b"samples":
            raise LimitExceeded("samples_per_day", limits.samples_per_day or 0, float(retry_after_s[0]))

    async def refund(self, name: str, *, samples: int, sample_steps: int) -> None:
        """Take back the samples of a request that was charged and then came to nothing."""
        await self._refund(keys.usage(name), samples=samples, sample_steps=sample_steps)

    async def usage(self, name: str) -> Usage:
        counted = await call(self._redis, "HMGET", keys.usage(name), *_COUNTED)
        return Usage(*(int(count or 0) for count in counted))
