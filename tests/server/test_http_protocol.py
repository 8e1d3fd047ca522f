"""Clients that send too much or too slowly, and pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from msf_server.middleware import http_protocol as transport
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening, listening_to, serving
from tests.server.fake_worker import FakeWorker

PATH = "/v1/images/generations"
LIVE = "/v2/health/live"
ORIGIN = "https://studio.example"


async def exchange(url: str, text: str) -> bytes:
    """Send `text` and return all answers until the server closes; nothing if it resets the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(text.encode())
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "start",
    [
        "",
        "GET /v2/health/li",
        "GET /v2/health/live HTTP/1.1\r\nHost: msf\r\nX-Slow: ",
        "GET /v2/health/live HTTP/1.1\r\nHost: msf\r\n\r\nGET /v2",  # the second on its connection
    ],
)
async def test_unfinished_headers_time_out(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 0.05)
    async with listening(settings) as url:
        answers = await exchange(url, start)
    assert answers.count(b"HTTP/1.1 200") == start.count("\r\n\r\n")


async def test_an_unfinished_body_is_answered_with_408(settings: ServerSettings, worker: FakeWorker) -> None:
    async with listening(settings.model_copy(update={"body_timeout_s": 0.05})) as url:
        answers = await exchange(
            url,
            f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{",
        )
    assert answers.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answers
    assert b"Allowed: 0.05 seconds." in answers


async def test_an_unread_body_times_out(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 0.05)
    async with listening(settings) as url:
        answers = await exchange(url, "POST /nowhere HTTP/1.1\r\nHost: msf\r\nContent-Length: 1000000\r\n\r\n{")
    assert answers.startswith(b"HTTP/1.1 404")


async def test_an_answer_that_is_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_S", 0.05)
    size = 64 * 2**20  # more than any socket buffers
    is_over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size - 1), "more_body": True})
        await send({"type": "http.response.body", "body": b"x"})
        is_over.set()

    async with listening_to(app) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: msf\r\n\r\n")
        async with asyncio.timeout(20):
            await is_over.wait()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(size)
        writer.close()


@pytest.mark.parametrize(
    "headers",
    [{f"X-{number}": "1" for number in range(100)}, {"X-Long": "x" * 17_000}],
    ids=["too many", "too long"],
)
async def test_too_many_or_too_large_headers_are_refused(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    answer = await client.get(LIVE, headers=headers)
    assert answer.status_code == 431
    assert "Allowed: 64 headers and 16384 bytes." in answer.text
    assert answer.headers["x-request-id"]


async def test_a_long_request_target_is_refused(client: httpx.AsyncClient) -> None:
    assert (await client.get(LIVE, params={"x": "x" * 17_000})).status_code == 431


async def test_an_offer_to_upgrade_is_ignored(live_url: str) -> None:
    body = '{"prompt": "bag"}'
    head = f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    first = f"{head}Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n{body}"
    answers = await exchange(live_url, f"{first}{head}Connection: close\r\n\r\n{body}")
    assert answers.count(b"HTTP/1.1 200") == 2


async def test_endless_headers_are_not_collected(live_url: str) -> None:
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\n" + "X-More: xxxxxxxxxxxxxxxxxxxxxxxx\r\n" * 40_000)
    assert answers == b"" or answers.startswith(b"HTTP/1.1 400")


async def test_every_answer_has_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/v1/models", "/nowhere", "/page/app.js"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        scripts = policy.partition("script-src")[2].partition(";")[0] or policy.partition(";")[0]
        assert "unsafe" not in scripts


def asking(method: str, origin: str = ORIGIN) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type",
    }


async def test_other_origins_are_refused_by_default(client: httpx.AsyncClient) -> None:
    for answer in (
        await client.options(PATH, headers=asking("POST")),
        await client.post(PATH, json={"prompt": "bag"}, headers={"Origin": ORIGIN}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.fixture
async def shared(settings: ServerSettings, worker: FakeWorker) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(settings.model_copy(update={"cors_origins": (ORIGIN,)})) as app, client_of(app) as client:
        yield client


async def test_allowed_origins_may_call(shared: httpx.AsyncClient) -> None:
    preflight = await shared.options(PATH, headers=asking("POST"))
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    answer = await shared.post(PATH, json={"prompt": "bag"}, headers={"Origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "access-control-allow-credentials" not in answer.headers
    other = await shared.options(PATH, headers=asking("POST", "https://evil.example"))
    assert (other.status_code, "access-control-allow-origin" in other.headers) == (400, False)
