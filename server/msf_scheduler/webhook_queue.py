"""Webhooks that are due, in Redis, so that any server can deliver them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import Delivery
from msf_scheduler.scripts import Script
from msf_scheduler.tunables import WEBHOOK_LEASE_S, WEBHOOK_TTL_S


@dataclass(frozen=True)
class Lane:
    """Webhooks of one tenant to one host, which are delivered in turn with those of other lanes."""

    tenant: str
    host: str


@dataclass(frozen=True)
class DueWebhook:
    """Webhook that this server is to deliver; it was taken from `lane`."""

    job_id: str
    lane: Lane


def receiver(url: str) -> str:
    """Return the host of a webhook's URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""  # its delivery will fail, and no other's


class WebhookQueue:
    """Jobs whose callers await a webhook: due as soon as the job has ended. Every method raises `QueueUnavailable`."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._due = Script(redis, "due_webhooks")
        self._keep = Script(redis, "keep")
        self._settle = Script(redis, "settle_webhook")

    async def take(self, limit: int, under_way: Mapping[Lane, int]) -> list[DueWebhook]:
        """Return webhooks that are due, which no other server gets within WEBHOOK_LEASE_S.

        `under_way` counts those that this server delivers now: of each tenant and host it gets a limited number.
        """
        webhooks = await self._due(
            {"webhooks": keys.WEBHOOKS},
            limit=limit,
            lease_s=WEBHOOK_LEASE_S,
            under_way=[(lane.tenant, lane.host, number) for lane, number in under_way.items()],
        )
        return [DueWebhook(job_id.decode(), Lane(tenant.decode(), host.decode())) for job_id, tenant, host in webhooks]

    async def message(self, webhook: DueWebhook) -> bytes | None:
        """Return the message that was kept for further attempts: it may outlive the job."""
        message: bytes | None = await call(self._redis, "GET", f"{keys.WEBHOOK}{webhook.job_id}")
        return message

    async def keep(self, webhook: DueWebhook, message: bytes) -> None:
        """Store a message for further attempts."""
        await self._keep({"name": f"{keys.WEBHOOK}{webhook.job_id}"}, message, ttl_s=WEBHOOK_TTL_S)

    async def settle(self, webhook: DueWebhook, delivery: Delivery | None, *, retry_in_s: float | None) -> None:
        """Record a delivery, or None for a job that has not ended; `retry_in_s` None ends the attempts."""
        await self._settle(
            {"webhook": f"{keys.WEBHOOK}{webhook.job_id}", "job": keys.job(webhook.job_id)},
            id=webhook.job_id,
            tenant=webhook.lane.tenant,
            host=webhook.lane.host,
            delivery=delivery and delivery.model_dump_json(),
            retry_in_s=retry_in_s,
        )
