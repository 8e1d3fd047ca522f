"""Which callers are to be told of their jobs' ends, and when: in Redis, so that any server may do it."""

from __future__ import annotations

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call
from msf_scheduler.jobs import Delivery
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import WEBHOOK_LEASE_S, WEBHOOK_TTL_S


class Webhooks:
    """Every method raises `QueueUnavailable`. A job with a `webhook_url` is due as soon as it has ended."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._due = Script(redis, "due_webhooks")
        self._settle = Script(redis, "settle_webhook")

    async def take(self, limit: int) -> list[str]:
        """Ids of jobs whose webhooks are due, for this server alone for WEBHOOK_LEASE_S."""
        return [job_id.decode() for job_id in await self._due("", limit=limit, lease_s=WEBHOOK_LEASE_S)]

    async def message(self, job_id: str) -> bytes | None:
        """What was kept for further attempts: the job's own life may be shorter."""
        kept: bytes | None = await call(self._redis, "GET", keys.webhook(job_id))
        return kept

    async def keep(self, job_id: str, message: bytes) -> None:
        await call(self._redis, "SET", keys.webhook(job_id), message, "EX", WEBHOOK_TTL_S)

    async def settle(self, job_id: str, delivery: Delivery | None, *, again_in_s: float | None) -> None:
        """`again_in_s` None: it was delivered, or is given up. Without a `delivery` the job has not ended yet."""
        told = delivery and delivery.model_dump_json()
        await self._settle("", id=job_id, delivery=told, again_in_s=again_in_s)
