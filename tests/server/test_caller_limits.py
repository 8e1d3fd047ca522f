"""Limits of what one caller holds at a time: requests, event streams, and answers that it does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from msf_server.middleware import caller_limits as limits
from msf_server.middleware.caller_limits import CallerLimits
from msf_server.request_log import start_log
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening, listening_to, until
from tests.server.fake_worker import FakeWorker

IMAGES, JOBS, LIVE = "/v1/images/generations", "/v1/jobs", "/v2/health/live"
SIZE = 16 * 2**20  # more than sockets buffer


@asynccontextmanager
async def streams(url: str, path: str, count: int) -> AsyncIterator[list[httpx.Response]]:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client, AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client.stream("GET", path)) for _ in range(count)]


@pytest.mark.parametrize("limit", ["MAX_STREAMS_OF_JOB", "MAX_STREAMS_OF_CALLER", "MAX_STREAMS"])
async def test_event_streams_are_limited_until_they_end(
    settings: ServerSettings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(limits, limit, 2)
    worker.holding = True
    async with listening(settings) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        path = (await client.post(JOBS, json={"prompt": "bag"})).headers["location"] + "/events"
        async with streams(url, path, 3) as answers:
            assert [answer.status_code for answer in answers] == [200, 200, 429]
            assert "retry-after" in answers[2].headers
            stream = {"prompt": "bag", "stream": True}
            if limit != "MAX_STREAMS_OF_JOB":
                assert (await client.post(IMAGES, json=stream)).status_code == 429
                assert len(worker.claimed) == 1, "a refused stream queues no job"

        async def can_follow() -> bool:
            async with streams(url, path, 1) as [answer]:
                return answer.status_code == 200

        await until(can_follow)
        worker.holding = False


async def test_open_requests_of_a_caller_are_limited(
    app: FastAPI, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_REQUESTS_OF_CALLER", 2)
    worker.holding = True
    async with client_of(app) as client, client_of(app, "192.0.2.1") as other:
        waiting = [asyncio.create_task(client.post(IMAGES, json={"prompt": "bag", "seed": n})) for n in range(2)]
        await until(lambda: len(worker.claimed), 2)
        assert (await client.get("/v1/models")).status_code == 429
        assert (await client.get(LIVE)).status_code == 200
        assert (await other.get("/v1/models")).status_code == 200
        worker.holding = False
        assert [(await each).status_code for each in waiting] == [200, 200]
        assert (await client.get("/v1/models")).status_code == 200


async def _large(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % SIZE)]})
        await send({"type": "http.response.body", "body": bytes(SIZE)})


@asynccontextmanager
async def large_answers() -> AsyncIterator[str]:
    """URL of a server whose every answer has SIZE bytes."""
    limited = CallerLimits(_large)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            start_log(scope, "id")
            await limited(scope, receive, send)

    async with listening_to(call) as url:
        yield url


async def unread(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Request a large answer and read only its head."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(b"GET / HTTP/1.1\r\nHost: msf\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


@pytest.mark.parametrize("limit", ["MAX_UNREAD_BYTES", "MAX_UNREAD_BYTES_OF_CALLER"])
async def test_answers_that_are_not_read_are_dropped_beyond_a_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(limits, limit, 2 * SIZE)
    monkeypatch.setattr(limits, "STALLED_S", 0.0)
    monkeypatch.setattr(limits, "_check", lambda *_: None)  # new requests would be refused
    async with large_answers() as url:
        connections = [await unread(url) for _ in range(4)]
        async with asyncio.timeout(20):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await connections[0][0].readexactly(SIZE)
            assert len(await connections[-1][0].readexactly(SIZE)) == SIZE  # the newest is kept
        for _, writer in connections:
            writer.close()


async def test_an_answer_must_be_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ANSWER_S", 0.2)
    async with large_answers() as url:
        reader, writer = await unread(url)
        for _ in range(40):  # a few bytes at a time do not extend it
            await reader.readexactly(1024)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await reader.readexactly(SIZE)
        writer.close()
