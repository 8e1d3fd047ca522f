"""Clients that send too much or too slowly, and pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from msf_server.middleware import http_protocol as transport
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening, listening_to, serving, until
from tests.server.fake_worker import FakeWorker

PATH = "/v1/images/generations"
LIVE = "/v2/health/live"
CLOSING = f"GET {LIVE} HTTP/1.1\r\nHost: msf\r\nConnection: close\r\n\r\n"
ORIGIN = "https://studio.example"


async def exchange(url: str, text: str, piece: int = 2**20) -> bytes:
    """Send `text` in pieces and return all answers until the server closes; nothing if it resets the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for start in range(0, len(text), piece):
            writer.write(text[start : start + piece].encode())
            await asyncio.sleep(0)
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


async def test_a_body_that_is_not_read_times_out(settings: ServerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 0.05)
    async with listening(settings) as url:
        answers = await exchange(url, "POST /nowhere HTTP/1.1\r\nHost: msf\r\nContent-Length: 1000000\r\n\r\n{")
    assert answers.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("framing", ["Content-Length: 99999", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", [LIVE, "/v1/jobs/x/events", "/nowhere", PATH])
async def test_a_body_over_the_limit_is_refused_before_any_answer(live_url: str, path: str, framing: str) -> None:
    chunks = "" if framing.startswith("Content") else "fff0\r\n" + "x" * 0xFFF0 + "\r\nff\r\n" + "x" * 255
    answers = await exchange(
        live_url, f"GET {path} HTTP/1.1\r\nHost: msf\r\nConnection: close\r\n{framing}\r\n\r\n{chunks}"
    )
    assert answers.startswith(b"HTTP/1.1 413")
    assert answers.count(b"HTTP/1.1") == 1


async def test_a_body_over_the_limit_is_not_invited(live_url: str) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 99999"
    assert (await exchange(live_url, f"{head}\r\n\r\n")).startswith(b"HTTP/1.1 413")


async def test_a_malformed_request_is_answered_after_those_before_it(live_url: str) -> None:
    good = f"GET {LIVE} HTTP/1.1\r\nHost: msf\r\n\r\n"
    answers = await exchange(live_url, f"{good}{good}NOT HTTP\r\n\r\n{good}")
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"400"]
    assert answers.count(b'{"live":true}') == 2


async def test_a_malformed_body_gets_one_answer(live_url: str) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\nHost: msf\r\n\r\n{head}zz\r\n")
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


async def test_endless_pipelining_is_refused(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_PIPELINED", 3)
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\nHost: msf\r\n\r\n" * 9)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 4 + [b"400"]


@pytest.mark.parametrize(
    "host", ["", "Host: a\r\nHost: b\r\n", "Host: x/v1/files/y?\r\n", "Host: a b\r\n", "Host: x@y\r\n"]
)
async def test_an_invalid_host_is_refused(live_url: str, host: str) -> None:
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\n{host}Connection: close\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("host", ["msf", "127.0.0.1:8000", "[::1]:8000", "a-b_c.example."])
async def test_a_valid_host_is_taken(live_url: str, host: str) -> None:
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 200")


async def test_idle_connections_make_room_for_new_ones(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(transport, "MAX_CONNECTIONS_OF_ADDRESS", 2)
    host, port = live_url.removeprefix("http://").split(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
    assert (await exchange(live_url, CLOSING)).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(20):
        assert await idle[0][0].read() == b""  # the oldest was closed
    for _, writer in idle:
        writer.close()


async def test_connections_that_wait_for_answers_are_kept(
    live_url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.holding = True
    body = '{"prompt": "bag"}'
    waiting = asyncio.create_task(
        exchange(
            live_url,
            f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}",
        )
    )
    await until(lambda: len(worker.claimed), 1)
    monkeypatch.setattr(transport, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(transport, "MAX_CONNECTIONS_OF_ADDRESS", 1)
    assert (await exchange(live_url, CLOSING)).startswith(b"HTTP/1.1 429")
    worker.holding = False
    assert (await waiting).startswith(b"HTTP/1.1 200")


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


@pytest.mark.parametrize("piece", [1, 7, 10_000])
async def test_an_offer_to_upgrade_is_ignored(live_url: str, piece: int) -> None:
    body = '{"prompt": "bag"}'
    head = f"POST {PATH} HTTP/1.1\r\nHost: msf\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    first = f"{head}Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n{body}"
    answers = await exchange(live_url, f"{first}{first}{head}Connection: close\r\n\r\n{body}", piece)
    assert answers.count(b"HTTP/1.1 200") == 3


async def test_endless_headers_are_not_collected(live_url: str) -> None:
    answers = await exchange(live_url, f"GET {LIVE} HTTP/1.1\r\n" + "X-More: xxxxxxxxxxxxxxxxxxxxxxxx\r\n" * 40_000)
    assert answers == b"" or answers.startswith(b"HTTP/1.1 431")


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
