"""Tells callers at their own addresses how their jobs ended, signed as Standard Webhooks (standardwebhooks.com).

At least once: a message is sent again until it is answered with 2xx. Callers name the addresses, so none may lead
into our own network: names are resolved here, every address they have must be public, and the connection goes to the
address that was checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from base64 import b64encode
from datetime import UTC, datetime

import httpx
from pydantic import BaseModel

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import Delivery, JobRecord
from msf_server.dependencies import ServerContext
from msf_server.job_view import without_images
from msf_server.schemas import JobObject
from msf_server.ssrf import AddressRefused, resolve

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
AT_ONCE = 16
TIMEOUT_S = 10.0
AGAIN_IN_S = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 86400.0)  # Standard Webhooks' example, about 2 days


class Message(BaseModel):
    """What is kept until it is delivered."""

    url: str
    tenant: str
    body: str
    num_attempts: int = 0


def secret_of(master: str, tenant: str) -> bytes:
    """Each tenant has its own, so that none can sign for another."""
    return hmac.digest(master.encode(), f"webhook {tenant}".encode(), hashlib.sha256)


def shown_secret(master: str, tenant: str) -> str:
    """As the libraries of Standard Webhooks take it."""
    return f"whsec_{b64encode(secret_of(master, tenant)).decode()}"


def signed_headers(message_id: str, body: bytes, secret: bytes, now: int) -> dict[str, str]:
    signature = hmac.digest(secret, f"{message_id}.{now}.".encode() + body, hashlib.sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{b64encode(signature).decode()}",
        "content-type": "application/json",
        "user-agent": "msf-serve",
    }


class Deliverer:
    """One loop in each server."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._webhooks = context.webhooks
        self._allowed = context.settings.webhook_networks

    async def run(self) -> None:
        """For ever; outlives Redis."""
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S) as client:
            while True:
                try:
                    due = await self._webhooks.take(AT_ONCE)
                    await asyncio.gather(*(self._deliver(job_id, client) for job_id in due))
                except QueueUnavailable as error:
                    logger.warning("webhooks wait for Redis: %s", error)
                    due = []
                except Exception:
                    logger.exception("webhooks failed and go on")
                    due = []
                if len(due) < AT_ONCE:
                    await asyncio.sleep(LOOK_EVERY_S)

    async def _deliver(self, job_id: str, client: httpx.AsyncClient) -> None:
        kept = await self._webhooks.message(job_id)
        message = Message.model_validate_json(kept) if kept else await self._first_message(job_id)
        if message is None:
            return
        message.num_attempts += 1
        await self._webhooks.keep(job_id, message.model_dump_json().encode())
        problem = await self._send(f"msg_{job_id}", message, client)
        again_in_s = (
            AGAIN_IN_S[message.num_attempts - 1] if problem and message.num_attempts <= len(AGAIN_IN_S) else None
        )
        outcome = "delivered" if problem is None else "failed" if again_in_s is None else "retried"
        self._context.metrics.webhooks.labels(outcome).inc()
        if problem:
            logger.warning("webhook of job %s: %s", job_id, problem, extra={"job_id": job_id})
        delivery = Delivery(
            state="pending" if outcome == "retried" else outcome, num_attempts=message.num_attempts, problem=problem
        )
        await self._webhooks.settle(job_id, delivery, again_in_s=again_in_s)

    async def _first_message(self, job_id: str) -> Message | None:
        job = await self._context.queue.get(job_id)
        if job is None or job.terms.webhook_url is None:
            await self._webhooks.settle(job_id, None, again_in_s=None)
            return None
        if not job.state.is_terminal:
            return None  # its end makes it due; if an older release stores that, it is looked at again in a minute
        tenant = job.terms.tenant if self._context.keys else ""
        return Message(url=job.terms.webhook_url, tenant=tenant, body=event_of(job).model_dump_json())

    async def _send(self, message_id: str, message: Message, client: httpx.AsyncClient) -> str | None:
        """What went wrong; None: it was taken."""
        url = httpx.URL(message.url)
        secret = secret_of(self._context.settings.webhook_secret or "", message.tenant)
        body = message.body.encode()
        try:
            address = await resolve(url.host, url.port or (443 if url.scheme == "https" else 80), self._allowed)
            request = client.build_request(
                "POST",
                url.copy_with(host=address),
                content=body,
                headers={**signed_headers(message_id, body, secret, int(time.time())), "host": url.netloc.decode()},
                extensions={"sni_hostname": url.host},
            )
            async with asyncio.timeout(TIMEOUT_S):
                answer = await client.send(request, stream=True)
                await answer.aclose()  # whatever it says
        except AddressRefused as error:
            return str(error)
        except (OSError, httpx.HTTPError, TimeoutError) as error:
            return f"no answer: {error or type(error).__name__}"
        return None if answer.is_success else f"answered with {answer.status_code}"


class WebhookEvent(BaseModel):
    """A webhook's body; `type` is `job.` and how it ended. The images are at `/v1/jobs/{id}`, while they are kept."""

    type: str
    timestamp: str
    data: JobObject


def event_of(job: JobRecord) -> WebhookEvent:
    ended_at = datetime.fromtimestamp(job.finished_at or 0, UTC)
    return WebhookEvent(type=f"job.{job.state}", timestamp=ended_at.isoformat(), data=without_images(job))
