"""Webhooks: signed, retried, and never sent into private networks."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
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
from msf_server.webhook_delivery import tenant_secret
from tests.server.conftest import client_of, listening_to, serving, until
from tests.server.fake_worker import FakeWorker

JOBS = "/v1/jobs"
SECRET = "a secret that is long enough"


class Receiver:
    """Answers with `statuses`, one for each request, then 204."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.received: list[tuple[bytes, dict[str, str]]] = []
        self.url = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.received.append((await request.body(), dict(request.headers)))
        status = self.statuses.pop(0) if self.statuses else 204
        headers = self.headers | ({"location": self.url} if status == 302 else {})
        await Response(status_code=status, headers=headers)(scope, receive, send)


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


async def ask(client: httpx.AsyncClient, url: str, tenant: str | None = None) -> str:
    headers = {"authorization": f"Bearer {tenant}"} if tenant else None
    answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": url}, headers=headers)
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


async def test_a_host_name_in_a_private_network_is_refused_at_delivery(
    settings: ServerSettings, worker: FakeWorker, receiver: Receiver
) -> None:
    strict = settings.model_copy(update={"webhook_networks": (), "webhook_ports": (httpx.URL(receiver.url).port,)})
    async with serving(strict) as app, client_of(app) as client:
        job_id = await ask(client, receiver.url.replace("127.0.0.1", "localhost"))
        await until(lambda: _failed(client, job_id))
        problem = (await delivery(client, job_id))["problem"]
        assert "not a public address" in problem
        assert "127.0.0.1" not in problem
    assert receiver.received == []


async def _failed(client: httpx.AsyncClient, job_id: str) -> bool:
    state = await delivery(client, job_id)
    return state is not None and state["state"] == "failed"


async def test_webhooks_need_a_secret(settings: ServerSettings, worker: FakeWorker) -> None:
    off = settings.model_copy(update={"webhook_secret": None})
    async with serving(off) as app, client_of(app) as client:
        answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": "https://example.com"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "webhooks_off")


def test_secrets_differ_by_tenant() -> None:
    assert len({tenant_secret(master, name) for master in (SECRET, SECRET + "!") for name in ("", "ada", "bob")}) == 6


async def _silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


async def _trickling(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"y")
        await writer.drain()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def answering(handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Any:
    """URL of a receiver that does not speak HTTP as it should."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(task := asyncio.current_task())  # type: ignore[arg-type]
        with suppress(OSError, asyncio.CancelledError):
            await handler(reader, writer)
        writer.close()
        tasks.discard(task)

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("handler", [_silent, _trickling])
async def test_receivers_that_do_not_answer_hold_up_no_others(
    client: httpx.AsyncClient, receiver: Receiver, handler: Any
) -> None:
    """Not another tenant's webhook, and not the same tenant's to another host."""
    async with answering(handler) as url:
        for _ in range(40):
            await ask(client, url)
        await ask(client, receiver.url.replace("127.0.0.1", "localhost"))
        await ask(client, receiver.url, tenant="another")
        await until(lambda: len(receiver.received), 2)


async def test_every_attempt_ends(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.05)
    async with answering(_trickling) as url:
        job_id = await ask(client, url)
        await until(lambda: _failed(client, job_id))
        assert (await delivery(client, job_id))["problem"] == "no answer within 0.05 s"


async def test_a_resolver_that_does_not_answer_holds_up_no_others(
    client: httpx.AsyncClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()
    look_up = socket.getaddrinfo

    def slow(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".example"):
            answered.wait(30)
            raise socket.gaierror
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.05)
    for number in range(60):
        await ask(client, f"https://slow-{number}.example/")
    await ask(client, receiver.url, tenant="another")
    await until(lambda: len(receiver.received), 1)
    answered.set()


async def test_a_failure_of_any_class_counts_as_an_attempt(
    client: httpx.AsyncClient, receiver: Receiver, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> str:
        raise KeyError("unexpected: redis:///secret")

    monkeypatch.setattr(webhooks, "resolve", fail)
    job_id = await ask(client, receiver.url)
    await until(
        lambda: delivery(client, job_id), {"state": "failed", "num_attempts": 4, "problem": "the attempt failed"}
    )
    assert await redis.keys("{msf}:webhook*") == []


async def test_a_receiver_may_ask_for_a_later_attempt(
    client: httpx.AsyncClient, receiver: Receiver, redis: Redis
) -> None:
    receiver.statuses = [429]
    receiver.headers = {"retry-after": "100"}
    job_id = await ask(client, receiver.url)
    await until(lambda: _is_pending(client, job_id))
    due_at = await redis.zscore(keys.WEBHOOKS, await _tenant(redis, job_id))
    seconds, _ = await redis.time()
    assert due_at is not None
    assert 50 < due_at - seconds <= 101


async def _tenant(redis: Redis, job_id: str) -> bytes:
    tenant = await redis.hget(keys.job(job_id), "tenant")
    assert isinstance(tenant, bytes)
    return tenant


async def test_webhooks_are_delivered_while_the_store_is_full(
    client: httpx.AsyncClient, worker: FakeWorker, receiver: Receiver, redis: Redis
) -> None:
    worker.claiming = False
    receiver.statuses = [500]
    job_id = await ask(client, receiver.url)
    try:
        await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] - 100_000)
        worker.claiming = True
        await until(lambda: delivery(client, job_id), {"state": "delivered", "num_attempts": 2, "problem": None})
    finally:
        await redis.config_set("maxmemory", "1gb")


async def _is_pending(client: httpx.AsyncClient, job_id: str) -> bool:
    state = await delivery(client, job_id)
    return state is not None and state["state"] == "pending"


async def test_a_tenant_has_a_limited_number_of_undelivered_webhooks(
    settings: ServerSettings, worker: FakeWorker, receiver: Receiver
) -> None:
    worker.claiming = False
    async with serving(settings.model_copy(update={"max_pending_webhooks": 2})) as app, client_of(app) as client:
        for _ in range(2):
            await ask(client, receiver.url)
        answer = await client.post(JOBS, json={"prompt": "bag", "webhook_url": receiver.url})
        assert (answer.status_code, "pending_webhooks" in answer.text) == (429, True)
        assert "retry-after" in answer.headers
        await ask(client, receiver.url, tenant="another")
        worker.claiming = True
        await until(lambda: len(receiver.received), 3)

        async def status() -> int:
            return (await client.post(JOBS, json={"prompt": "bag", "webhook_url": receiver.url})).status_code

        await until(status, 202)  # once the deliveries are settled
