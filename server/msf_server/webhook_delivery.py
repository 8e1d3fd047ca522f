"""Webhooks, signed as Standard Webhooks (standardwebhooks.com) and delivered at least once.

A message is sent again until it is answered with 2xx. Callers choose the URLs, so none may lead into a private network:
names are resolved here, every address must be public, and the connection goes to the address that was checked.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import socket
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from pydantic import BaseModel, Field
from standardwebhooks import Webhook

from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import Delivery, JobRecord, JobState
from msf_scheduler.queue import JobQueue
from msf_scheduler.tunables import MAX_WEBHOOKS_TAKEN
from msf_scheduler.webhook_queue import DueWebhook, Lane, WebhookQueue
from msf_server.metrics import Metrics
from msf_server.schemas.jobs import JobObject
from msf_server.settings import ServerSettings
from msf_server.ssrf import AddressRefused, parse, resolve

logger = logging.getLogger(__name__)

POLL_S = 0.5
MAX_CONCURRENT = 256
TIMEOUT_S = 10.0  # of one attempt, from resolving the host to the status of the answer
MAX_RETRY_AFTER_S = 3600.0  # that a receiver may ask for
UNREADABLE_RETRY_S = 300.0
RETRY_AFTER_S = (5.0, 30.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 86400.0)  # Standard Webhooks' example, 2 days


class Message(BaseModel):
    """A webhook that is stored until it is delivered."""

    url: str
    tenant: str
    body: str
    num_attempts: int = 0


@dataclass(frozen=True)
class Failure:
    """Reason why a delivery was not accepted, for the caller; `retry_after_s` is the receiver's wish."""

    problem: str
    retry_after_s: float = 0.0


class WebhookEvent(BaseModel):
    """Body of a webhook; `type` is `job.` and the job's final state. Images are at `/v1/jobs/{id}` while kept."""

    type: str = Field(json_schema_extra={"enum": [f"job.{state}" for state in JobState if state.is_terminal]})
    timestamp: str = Field(description="Time of the end.", json_schema_extra={"format": "date-time"})
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
    """Delivery loop of one server; any server may deliver any webhook.

    Each attempt has a time limit, and each tenant and host a limited number of attempts at once, so that receivers
    that do not answer hold up no others.
    """

    def __init__(self, webhooks: WebhookQueue, queue: JobQueue, metrics: Metrics, settings: ServerSettings) -> None:
        self._webhooks = webhooks
        self._queue = queue
        self._metrics = metrics
        self._master = settings.webhook_secret or ""
        self._networks = settings.webhook_networks
        self._ports = settings.webhook_ports
        self._has_tenants = settings.api_keys_file is not None
        self._under_way: Counter[Lane] = Counter()

    async def run(self) -> None:
        """Deliver until cancelled, also across outages of Redis."""
        attempts: set[asyncio.Task[None]] = set()
        # Without keep-alive: a connection belongs to a host name, and its pool knows addresses only.
        limits = httpx.Limits(max_connections=MAX_CONCURRENT, max_keepalive_connections=0)
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S, limits=limits) as client:
            try:
                while True:
                    due_webhooks = await self._take(MAX_CONCURRENT - self._under_way.total())
                    for webhook in due_webhooks:
                        self._occupy(webhook.lane, 1)
                        attempts.add(asyncio.create_task(self._deliver(webhook, client)))
                    if not due_webhooks:
                        await _sleep_until_any(attempts, POLL_S)
                    attempts = {attempt for attempt in attempts if not attempt.done()}
            finally:
                for attempt in attempts:
                    attempt.cancel()
                await asyncio.gather(*attempts, return_exceptions=True)

    async def _take(self, limit: int) -> list[DueWebhook]:
        if limit <= 0:
            return []
        try:
            return await self._webhooks.take(min(limit, MAX_WEBHOOKS_TAKEN), self._under_way)
        except QueueUnavailable as error:
            logger.warning("webhooks wait for Redis: %s", error)
        except Exception:
            logger.exception("webhooks that are due cannot be read")
        return []

    async def _deliver(self, webhook: DueWebhook, client: httpx.AsyncClient) -> None:
        """Attempt one delivery. Whatever happens, the attempt is counted, and ends after a limited time."""
        try:
            message = await self._message(webhook)
            if message is not None:
                await self._attempt(webhook, message, client)
        except QueueUnavailable as error:
            logger.warning("the webhook of job %s waits for Redis: %s", webhook.job_id, error)
        except Exception:
            logger.exception("the webhook of job %s cannot be read", webhook.job_id, extra={"job_id": webhook.job_id})
            with suppress(QueueUnavailable):
                await self._webhooks.settle(webhook, None, retry_in_s=UNREADABLE_RETRY_S)
        finally:
            self._occupy(webhook.lane, -1)

    def _occupy(self, lane: Lane, number: int) -> None:
        self._under_way[lane] += number
        if self._under_way[lane] == 0:
            del self._under_way[lane]

    async def _attempt(self, webhook: DueWebhook, message: Message, client: httpx.AsyncClient) -> None:
        message.num_attempts += 1
        await self._webhooks.keep(webhook, message.model_dump_json().encode())  # counted even if this process dies
        failure = await self._send(webhook, message, client)
        if failure is None:
            outcome, retry_in_s = "delivered", None
        elif message.num_attempts <= len(RETRY_AFTER_S):
            outcome, retry_in_s = "retried", max(RETRY_AFTER_S[message.num_attempts - 1], failure.retry_after_s)
        else:
            outcome, retry_in_s = "failed", None
        self._metrics.webhooks.labels(outcome).inc()
        delivery = Delivery(
            state="pending" if outcome == "retried" else outcome,
            num_attempts=message.num_attempts,
            problem=failure and failure.problem,
        )
        await self._webhooks.settle(webhook, delivery, retry_in_s=retry_in_s)

    async def _message(self, webhook: DueWebhook) -> Message | None:
        """Return the message to send; None if there is none, or none yet."""
        stored = await self._webhooks.message(webhook)
        if stored:
            return Message.model_validate_json(stored)
        job = await self._queue.get(webhook.job_id)
        if job is None or job.terms.webhook_url is None:
            await self._webhooks.settle(webhook, None, retry_in_s=None)
            return None
        if not job.state.is_terminal:
            return None  # looked at again in a minute, in case an older release stores its end
        tenant = job.terms.tenant if self._has_tenants else ""
        return Message(url=job.terms.webhook_url, tenant=tenant, body=WebhookEvent.of(job).model_dump_json())

    async def _send(self, webhook: DueWebhook, message: Message, client: httpx.AsyncClient) -> Failure | None:
        """Send a message once; return why it was not accepted, None if it was. The log has what callers may not see."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._post(webhook, message, client)
        except Exception as error:
            failure = Failure(_explained(error))
            logger.warning(
                "webhook of job %s: %s (%s: %s)",
                *(webhook.job_id, failure.problem, type(error).__name__, error),
                extra={"job_id": webhook.job_id},
            )
            return failure
        if answer.is_success:
            return None
        logger.warning("webhook of job %s: answered with %d", webhook.job_id, answer.status_code)
        return Failure(f"answered with {answer.status_code}", _retry_after_s(answer))

    async def _post(self, webhook: DueWebhook, message: Message, client: httpx.AsyncClient) -> httpx.Response:
        url = httpx.URL(message.url)
        host, port = parse(message.url)
        request = client.build_request(
            "POST",
            url.copy_with(host=await self._resolve(webhook.lane, host, port)),
            content=message.body,
            headers={**self._headers(f"msg_{webhook.job_id}", message), "host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": host},
        )
        answer = await client.send(request, stream=True, follow_redirects=False)
        await answer.aclose()  # the body does not matter
        return answer

    async def _resolve(self, lane: Lane, host: str, port: int) -> str:
        """Resolve a host. A resolver that is given up still occupies a thread, which counts against the lane."""
        resolution = asyncio.create_task(resolve(host, port, self._networks, self._ports))
        try:
            return await asyncio.shield(resolution)
        except asyncio.CancelledError:
            self._occupy(lane, 1)
            resolution.add_done_callback(lambda _: self._occupy(lane, -1))
            raise

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


async def _sleep_until_any(tasks: set[asyncio.Task[None]], timeout_s: float) -> None:
    """Return when one of the tasks has ended, or after `timeout_s`."""
    if tasks:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(timeout_s)


def _explained(error: Exception) -> str:
    """Return what a caller may know of a failure: nothing about addresses, files or certificates of this network."""
    match error:
        case AddressRefused():
            return f"refused: {error}"
        case TimeoutError() | httpx.TimeoutException():
            return f"no answer within {TIMEOUT_S:g} s"
        case socket.gaierror():
            return "no answer: its host name cannot be resolved"
        case httpx.ConnectError() | OSError():
            return "no answer: no connection could be made"
        case httpx.HTTPError():
            return "no answer: the connection broke, or what came is not HTTP"
        case _:
            return "the attempt failed"


def _retry_after_s(answer: httpx.Response) -> float:
    """Return the delay that the receiver asks for, within limits."""
    value = answer.headers.get("retry-after", "")
    return min(float(value), MAX_RETRY_AFTER_S) if value.isascii() and value.isdecimal() else 0.0
