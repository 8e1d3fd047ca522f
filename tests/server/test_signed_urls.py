"""Signed URLs of images: the path that routes is the path that is verified, at every server and after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening, serving
from tests.server.fake_worker import FakeWorker
from tests.server.test_http_protocol import exchange

PATH = "/v1/images/generations"
JOBS = "/v1/jobs"


async def signed(client: httpx.AsyncClient, prompt: str = "bag") -> str:
    """Return the target of a new image."""
    answer = await client.post(PATH, json={"prompt": prompt, "response_format": "url", "cache": False})
    url = urlsplit(answer.json()["data"][0]["url"])
    return f"{url.path}?{url.query}"


async def test_servers_verify_each_others_urls(settings: ServerSettings, worker: FakeWorker, redis: Redis) -> None:
    async with serving(settings) as first, serving(settings) as second:
        ours, theirs = client_of(first), client_of(second)
        drawn = await asyncio.gather(signed(ours), signed(theirs))  # both find no secret
        assert [(await theirs.get(target)).status_code for target in drawn] == [200, 200]
        assert (await theirs.get(await signed(ours))).status_code == 200
        assert (await ours.get(await signed(theirs))).status_code == 200
        await call(redis, "DEL", keys.URL_SECRET)  # as a Redis that lost its data: all servers agree again
        assert (await theirs.get(await signed(ours))).status_code == 200
        last = await signed(theirs)
    async with serving(settings) as restarted, client_of(restarted) as client:
        assert (await client.get(last)).status_code == 200


def disguises(own: str, other: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of target and host that could confuse the path of an own, signed image with another one's."""
    path, query = own.split("?")
    host = "msf"
    yield other.split("?", maxsplit=1)[0] + "?" + query, host
    yield other.split("?", maxsplit=1)[0] + "?" + query, f"msf{path}?"
    yield f"http://msf{other.split('?', maxsplit=1)[0]}?{query}", f"msf{path}"
    yield f"{path}/..{other.split('?', maxsplit=1)[0]}?{query}", host
    yield f"{path}/%2e%2e/%2e%2e/{other.split('?', maxsplit=1)[0].split('/v1/files/')[1]}?{query}", host
    yield f"/v1/files/{other.split('/')[3]}%2f..%2f{path.split('/')[3]}/0.png?{query}", host
    yield f"//msf{path}/../..{other.split('?', maxsplit=1)[0]}?{query}", host
    yield f"{other.split('?', maxsplit=1)[0]}?{query}#{path}", host
    yield f"{other.split('?', maxsplit=1)[0]}%3F?{query}", host
    yield f"{other.split('?', maxsplit=1)[0]}%00?{query}", host
    yield f"{other.split('?', maxsplit=1)[0]}?{query}&{own.split('?')[1]}", host


async def test_a_signature_opens_no_other_path(settings: ServerSettings, worker: FakeWorker) -> None:
    async with listening(settings) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            own, other = await signed(client), await signed(client, "shirt")
            assert (await client.get(own)).status_code == (await client.get(other)).status_code == 200
        for target, host in disguises(own, other):
            answer = await exchange(url, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
            assert answer[9:12] in (b"400", b"403", b"404"), (target, host, answer)
        absolute = f"GET http://elsewhere{own} HTTP/1.1\r\nHost: msf\r\nConnection: close\r\n\r\n"
        assert (await exchange(url, absolute)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("change", ["{}0", "{}%0a", "{}&expires=99999999999", "{}&signature="])
async def test_changed_parameters_are_refused(client: httpx.AsyncClient, change: str) -> None:
    answer = await client.get(change.format(await signed(client)))
    assert answer.status_code == 403


async def test_a_forged_host_cannot_enter_urls(client: httpx.AsyncClient) -> None:
    with suppress(httpx.InvalidURL):
        answer = await client.post(PATH, json={"prompt": "bag", "response_format": "url"}, headers={"Host": "x/y?"})
        assert answer.status_code == 400
