"""Webhooks, signed as Standard Webhooks (standardwebhooks.com) and delivered at least once.

A message is sent again until it is answered with 2xx. Callers choose the URLs, so none may lead into a private network:
names are resolved here, every address must be public, and the connection goes to the address that was checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from base64 import b64encode
from datetime import UTC, datetime

import httpx
from pydantic import BaseModel
from standardwebhooks import Webhook

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import Delivery, JobRecord
from msf_scheduler.queue import JobQueue
from msf_scheduler.webhook_queue import WebhookQueue
from msf_server.metrics import Metrics
from msf_server.schemas.jobs import JobObject
from msf_server.settings import ServerSettings
from msf_server.ssrf import AddressRefused, resolve

logger = logging.getLogger(__name__)

POLL_S = 1.0
MAX_CONCURRENT = 16
TIMEOUT_S = 10.0
RETRY_AFTER_S = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 86400.0)  # Standard Webhooks' example, 2 days


class Message(BaseModel):
    """A webhook that is stored until it is delivered."""

    url: str
    tenant: str
    body: str
    num_attempts: int = 0


class WebhookEvent(BaseModel):
    """Body of a webhook; `type` is `job.` and the job's final state. Images are at `/v1/jobs/{id}` while kept."""

    type: str
    timestamp: str
    data: JobObject

    @classmethod
    def of(cls, job: JobRecord) -> WebhookEvent:
        """Describe the end of `job`."""
        ended_at = datetime.fromtimestamp(job.finished_at or 0, UTC)
        return cls(type=f"job.{job.state}", timestamp=ended_at.isoformat(), data=JobObject.of(job))


def tenant_secret(master: str, tenant: str) -> str:
    """Return the secret of one tenant, in Standard Webhooks' format; no tenant can sign for another."""
    secret = hmac.digest(master.encode(), f"webhook {tenant}".encode(), hashlib.sha256)
    return f"whsec_{b64encode(secret).decode()}"


class Deliverer:
    """Delivery loop of one server; any server may deliver any webhook."""

    def __init__(self, webhooks: WebhookQueue, queue: JobQueue, metrics: Metrics, settings: ServerSettings) -> None:
        self._webhooks = webhooks
        self._queue = queue
        self._metrics = metrics
        self._master = settings.webhook_secret or ""
        self._networks = settings.webhook_networks
        self._has_tenants = settings.api_keys_file is not None

    async def run(self) -> None:
        """Deliver until cancelled, also across outages of Redis."""
        async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S) as client:
            while True:
                job_ids: list[str] = []
                try:
                    job_ids = await self._webhooks.take(MAX_CONCURRENT)
                    await asyncio.gather(*(self._deliver(job_id, client) for job_id in job_ids))
                except QueueUnavailable as error:
                    logger.warning("webhooks wait for Redis: %s", error)
                except Exception:
                    logger.exception("a delivery of webhooks failed")
                if len(job_ids) < MAX_CONCURRENT:
                    await asyncio.sleep(POLL_S)

    async def _deliver(self, job_id: str, client: httpx.AsyncClient) -> None:
        stored = await self._webhooks.message(job_id)
        message = Message.model_validate_json(stored) if stored else await self._first_message(job_id)
        if message is None:
            return
        message.num_attempts += 1
        await self._webhooks.keep(job_id, message.model_dump_json().encode())
        problem = await self._send(f"msg_{job_id}", message, client)
        retry_in_s = RETRY_AFTER_S[message.num_attempts - 1] if message.num_attempts <= len(RETRY_AFTER_S) else None
        if problem is None:
            outcome, retry_in_s = "delivered", None
        else:
            outcome = "failed" if retry_in_s is None else "retried"
            logger.warning("webhook of job %s: %s", job_id, problem, extra={"job_id": job_id})
        self._metrics.webhooks.labels(outcome).inc()
        delivery = Delivery(
            state="pending" if outcome == "retried" else outcome, num_attempts=message.num_attempts, problem=problem
        )
        await self._webhooks.settle(job_id, delivery, retry_in_s=retry_in_s)

    async def _first_message(self, job_id: str) -> Message | None:
        job = await self._queue.get(job_id)
        if job is None or job.terms.webhook_url is None:
            await self._webhooks.settle(job_id, None, retry_in_s=None)
            return None
        if not job.state.is_terminal:
            return None  # looked at again in a minute, in case an older release stores its end
        tenant = job.terms.tenant if self._has_tenants else ""
        return Message(url=job.terms.webhook_url, tenant=tenant, body=WebhookEvent.of(job).model_dump_json())

    async def _send(self, message_id: str, message: Message, client: httpx.AsyncClient) -> str | None:
        """Send a message once; return what went wrong, None if it was accepted."""
        url = httpx.URL(message.url)
        try:
            address = await resolve(url.host, url.port or (443 if url.scheme == "https" else 80), self._networks)
            request = client.build_request(
                "POST",
                url.copy_with(host=address),
                content=message.body,
                headers={**self._headers(message_id, message), "host": url.netloc.decode()},
                extensions={"sni_hostname": url.host},
            )
            async with asyncio.timeout(TIMEOUT_S):
                answer = await client.send(request, stream=True)
                await answer.aclose()  # the body does not matter
        except AddressRefused as error:
            return str(error)
        except (OSError, httpx.HTTPError, TimeoutError) as error:
            return f"no answer: {error or type(error).__name__}"
        return None if answer.is_success else f"answered with {answer.status_code}"

    def _headers(self, message_id: str, message: Message) -> dict[str, str]:
        now = datetime.now(UTC)
        signer = Webhook(tenant_secret(self._master, message.tenant))
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signer.sign(message_id, now, message.body),
            "content-type": "application/json",
            "user-agent": "msf-serve",
        }
