"""Webhooks that are due, in Redis, so that any server can deliver them."""

from __future__ import annotations

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import Delivery
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import WEBHOOK_LEASE_S, WEBHOOK_TTL_S


class WebhookQueue:
    """Jobs whose callers await a webhook: due as soon as the job has ended. Every method raises `QueueUnavailable`."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._due = Script(redis, "due_webhooks")
        self._settle = Script(redis, "settle_webhook")

    async def take(self, limit: int) -> list[str]:
        """Return ids of jobs whose webhooks are due, which no other server gets within WEBHOOK_LEASE_S."""
        job_ids = await self._due({"webhooks": keys.WEBHOOKS}, limit=limit, lease_s=WEBHOOK_LEASE_S)
        return [job_id.decode() for job_id in job_ids]

    async def message(self, job_id: str) -> bytes | None:
        """Return the message that was kept for further attempts: it may outlive the job."""
        message: bytes | None = await call(self._redis, "GET", f"{keys.WEBHOOK}{job_id}")
        return message

    async def keep(self, job_id: str, message: bytes) -> None:
        """Store a message for further attempts."""
        await call(self._redis, "SET", f"{keys.WEBHOOK}{job_id}", message, "EX", WEBHOOK_TTL_S)

    async def settle(self, job_id: str, delivery: Delivery | None, *, retry_in_s: float | None) -> None:
        """Record a delivery, or None for a job that has not ended; `retry_in_s` None ends the attempts."""
        await self._settle(
            {"webhooks": keys.WEBHOOKS, "webhook": f"{keys.WEBHOOK}{job_id}", "job": keys.job(job_id)},
            id=job_id,
            delivery=delivery and delivery.model_dump_json(),
            retry_in_s=retry_in_s,
        )
