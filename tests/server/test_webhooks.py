"""Webhooks: signed, retried, and never sent into private networks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from standardwebhooks import Webhook
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from msf_scheduler import keys
from msf_server import webhook_delivery as webhooks
from msf_server.settings import ServerSettings
from msf_server.ssrf import AddressRefused, check_url, is_allowed, resolve
from msf_server.webhook_delivery import tenant_secret
from tests.server.conftest import client_of, listening_to, serving, until
from tests.server.fake_worker import FakeWorker

JOBS = "/v1/jobs"
SECRET = "a secret that is long enough"


class Receiver:
    """Answers with `statuses`, one for each request, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[bytes, dict[str, str]]] = []
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.received.append((await request.body(), dict(request.headers)))
        status = self.statuses.pop(0) if self.statuses else 204
        await Response(status_code=status, headers={"location": self.url} if status == 302 else None)(
            scope, receive, send
        )


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with listening_to(receiver) as url:
        receiver.url = f"{url}/hook"
        yield receiver


@pytest.fixture
def settings(redis_url: str) -> ServerSettings:
    return ServerSettings(
        redis_url=redis_url, port=0, webhook_secret=SECRET, webhook_networks=(ip_network("127.0.0.0/8"),)
    )


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRY_AFTER_S", (0.01, 0.01, 0.01))


async def ask(client: httpx.AsyncClient, url: str) -> str:
    answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": url})
    job_id: str = answer.raise_for_status().json()["id"]
    return job_id


async def delivery(client: httpx.AsyncClient, job_id: str) -> Any:
    return (await client.get(f"{JOBS}/{job_id}")).json()["webhook"]


async def test_the_end_of_a_job_is_delivered_signed(client: httpx.AsyncClient, receiver: Receiver) -> None:
    job_id = await ask(client, receiver.url)
    await until(lambda: len(receiver.received), 1)
    body, headers = receiver.received[0]
    event = Webhook(tenant_secret(SECRET, "")).verify(body, headers)
    assert event["type"] == "job.succeeded"
    assert (event["data"]["id"], event["data"]["data"]) == (job_id, None)
    assert headers["webhook-id"] == f"msg_{job_id}"
    await until(lambda: delivery(client, job_id), {"state": "delivered", "num_attempts": 1, "problem": None})


async def test_a_webhook_is_retried_until_it_is_accepted(client: httpx.AsyncClient, receiver: Receiver) -> None:
    receiver.statuses = [500, 404]
    job_id = await ask(client, receiver.url)
    await until(lambda: delivery(client, job_id), {"state": "delivered", "num_attempts": 3, "problem": None})
    bodies, ids = {body for body, _ in receiver.received}, {h["webhook-id"] for _, h in receiver.received}
    assert (len(receiver.received), len(bodies), len(ids)) == (3, 1, 1)


async def test_a_webhook_that_is_never_accepted_fails_visibly(
    client: httpx.AsyncClient, receiver: Receiver, redis: Redis
) -> None:
    receiver.statuses = [302] * 4
    job_id = await ask(client, receiver.url)
    await until(
        lambda: delivery(client, job_id), {"state": "failed", "num_attempts": 4, "problem": "answered with 302"}
    )
    assert len(receiver.received) == 4  # no redirection was followed
    assert await redis.zcard(keys.WEBHOOKS) == 0
    metrics = (await client.get("/metrics")).text
    assert 'msf_webhooks_total{outcome="failed"} 1.0' in metrics


async def test_another_server_delivers_pending_webhooks(
    settings: ServerSettings, worker: FakeWorker, receiver: Receiver
) -> None:
    without = settings.model_copy(update={"webhook_secret": None})
    worker.claiming = False
    async with serving(settings) as app, client_of(app) as client:
        job_id = await ask(client, receiver.url)
    worker.claiming = True
    async with serving(without) as app, client_of(app) as client:
        await until(lambda: _status(client, job_id), "succeeded")
    assert receiver.received == []
    async with serving(settings), serving(settings):
        await until(lambda: len(receiver.received), 1)


async def _status(client: httpx.AsyncClient, job_id: str) -> Any:
    return (await client.get(f"{JOBS}/{job_id}")).json()["status"]


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/x",
        "https://192.168.1.1:8443/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fd00::1]/",
        "http://0.0.0.0/",
        "ftp://example.com/",
        "https://user:pass@example.com/",
        "https:///x",
        "javascript:alert(1)",
        "http://[::1",
    ],
)
async def test_webhook_urls_that_are_refused(settings: ServerSettings, worker: FakeWorker, url: str) -> None:
    strict = settings.model_copy(update={"webhook_networks": ()})
    async with serving(strict) as app, client_of(app) as client:
        answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": url})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "webhook_url"


async def test_a_host_name_in_a_private_network_is_refused_at_delivery(
    settings: ServerSettings, worker: FakeWorker, receiver: Receiver
) -> None:
    strict = settings.model_copy(update={"webhook_networks": ()})
    async with serving(strict) as app, client_of(app) as client:
        job_id = await ask(client, receiver.url.replace("127.0.0.1", "localhost"))
        await until(lambda: _failed(client, job_id))
        assert "not a public address" in (await delivery(client, job_id))["problem"]
    assert receiver.received == []


async def _failed(client: httpx.AsyncClient, job_id: str) -> bool:
    state = await delivery(client, job_id)
    return state is not None and state["state"] == "failed"


async def test_webhooks_need_a_secret(settings: ServerSettings, worker: FakeWorker) -> None:
    off = settings.model_copy(update={"webhook_secret": None})
    async with serving(off) as app, client_of(app) as client:
        answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": "https://example.com"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhooks_off")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
        ("2001::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
    ],
)
def test_public_addresses(address: str, allowed: bool) -> None:
    assert is_allowed(ip_address(address)) is allowed


def test_secrets_differ_by_tenant() -> None:
    assert len({tenant_secret(master, name) for master in (SECRET, SECRET + "!") for name in ("", "ada", "bob")}) == 6


async def test_all_addresses_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(*_: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", ("8.8.8.8", 443)), (0, 0, 0, "", ("10.0.0.7", 443))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.7"):
        await resolve("example.com", 443, ())
    assert await resolve("example.com", 443, (ip_network("10.0.0.0/8"),)) == "8.8.8.8"
    check_url("https://example.com/hook?x=1")
