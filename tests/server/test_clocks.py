"""Servers whose clocks differ from Redis's and from each other's: nothing ends early, and nothing lives longer."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from msf_server.dependencies import Services
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker

PATH = "/v1/images/generations"


@pytest.fixture(params=[-3600.0, 30.0, 86400.0], ids=["behind", "ahead", "a day ahead"])
async def client(
    request: pytest.FixtureRequest, settings: ServerSettings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """Client of a server whose clock is wrong."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + request.param)
    async with serving(settings) as app, client_of(app) as client:
        yield client


async def address(client: httpx.AsyncClient, **fields: Any) -> str:
    answer = await client.post(PATH, json={"prompt": "bag", "response_format": "url", **fields})
    return str(answer.raise_for_status().json()["data"][0]["url"])


async def test_urls_of_images_are_valid_at_every_server(client: httpx.AsyncClient, settings: ServerSettings) -> None:
    url = await address(client)
    async with serving(settings) as another, client_of(another) as right:
        for each in (client, right):
            answer = await each.get(url)
            assert answer.status_code == 200
            assert 0 < int(answer.headers["cache-control"].rpartition("=")[2]) <= settings.result_ttl_s


async def test_jobs_end_by_their_own_deadline(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    for stream in (True, False):
        answer = await client.post(PATH, json={"prompt": "bag", "timeout_s": 20, "stream": stream})
        assert answer.status_code == 200
        assert "error" not in answer.text


async def test_an_expired_url(settings: ServerSettings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(settings) as app, client_of(app) as client:
        services: Services = app.state.services
        monkeypatch.setattr(services.url_signer, "_lifetime_s", -2.0)
        answer = await client.get(await address(client))
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "url_expired")
