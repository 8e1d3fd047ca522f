"""Fixtures: an app with a real queue, a fake worker and a client."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
import uvloop
from fastapi import FastAPI
from starlette.types import ASGIApp

from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_server.app import create_app
from msf_server.middleware.http_protocol import server_config
from msf_server.settings import ServerSettings
from tests.polling import TIMEOUT_S, eventually
from tests.server.fake_worker import FakeWorker


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run these tests on the event loop of `msf serve`."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def settings(redis_url: str) -> ServerSettings:
    return ServerSettings(redis_url=redis_url, port=0, request_timeout_s=20)


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[FakeWorker]:
    async with FakeWorker(redis_url) as worker:
        yield worker


def client_of(app: FastAPI, address: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://msf", timeout=30)


@asynccontextmanager
async def serving(settings: ServerSettings) -> AsyncIterator[FastAPI]:
    """A new app with its lifespan running, in this process."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def app(settings: ServerSettings) -> AsyncIterator[FastAPI]:
    async with serving(settings) as app:
        yield app


@pytest.fixture
async def client(app: FastAPI, worker: FakeWorker) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


@pytest.fixture
async def live_url(settings: ServerSettings, worker: FakeWorker) -> AsyncIterator[str]:
    """URL of the app behind a real socket."""
    async with listening(settings) as url:
        yield url


@asynccontextmanager
async def listening(settings: ServerSettings) -> AsyncIterator[str]:
    async with listening_to(create_app(settings)) as url:
        yield url


@asynccontextmanager
async def listening_to(app: ASGIApp) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(app))
        running = asyncio.create_task(server._serve([listener]))  # serve() would take the test run's signal handlers
        try:
            await until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def until(observe: Callable[[], object], expected: object = True, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until `observe`, or the awaitable that it returns, gives `expected`."""

    async def is_expected() -> bool:
        value = observe()
        return bool((await value if inspect.isawaitable(value) else value) == expected)

    await eventually(is_expected, timeout_s)


@pytest.fixture
def stoppable_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    valkey = EmbeddedValkey(tmp_path)
    valkey.start()
    yield valkey
    valkey.stop()
