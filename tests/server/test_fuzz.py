"""Malformed input gets an error or a closed connection; the server stays healthy and logs no failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

PATHS = ("/v1/images/generations", "/v1/jobs", "/v2/models/fashion/infer", "/v1/files/x/0.png", "/v1/jobs/x/events")
GOOD = {"prompt": "bag", "seed": 1}
TIMEOUT_S = 20.0


def _garbage(generator: random.Random) -> Iterator[bytes]:
    """Yield requests with errors in the request line, headers, framing or encoding."""
    noise = generator.randbytes(generator.randrange(1, 400))
    path = generator.choice(PATHS).encode()
    length = generator.choice([b"-1", b"1e3", b"99999999999999999999", b"0x10", b"5", b"", b"1, 2"])
    yield noise
    yield b"POST " + path + b" HTTP/1.1\r\nHost: x\r\n" + noise + b"\r\n\r\n"
    yield b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + length + b"\r\n\r\n" + noise
    yield b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + noise
    yield b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
    yield b"GET " + path + b"?" + noise.replace(b" ", b"") + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise
    yield generator.choice([b"TRACE", b"CONNECT", b"PATCH", b"get"]) + b" " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("seed", range(8))
async def test_bytes_that_are_not_http(live_url: str, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    host, port = str(urlsplit(live_url).hostname), int(urlsplit(live_url).port or 0)
    for garbage in _garbage(random.Random(seed)):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(garbage)
        writer.write_eof()
        async with asyncio.timeout(TIMEOUT_S):
            answer = await reader.read()
        writer.close()
        assert not answer or answer.startswith((b"HTTP/1.1 2", b"HTTP/1.1 4")), (garbage, answer)
    await _check_healthy(live_url)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


HEADERS = ("authorization", "content-type", "idempotency-key", "last-event-id", "prefer", "x-request-id", "traceparent")


@pytest.mark.parametrize("path", PATHS)
async def test_random_header_values(live_url: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    generator = random.Random(path)
    method = "GET" if path.endswith(("png", "events")) else "POST"
    async with httpx.AsyncClient(base_url=live_url, timeout=TIMEOUT_S) as client:
        for _ in range(30):
            values = [generator.randbytes(generator.randrange(0, 300)) for _ in HEADERS]
            printable = [bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F).strip() for value in values]
            headers = dict(zip(HEADERS, printable, strict=True))
            answer = await client.request(method, path, headers=headers, content=b'{"prompt": "bag"}')  # type: ignore[arg-type]
            assert answer.status_code < 500, (headers, answer.text)
    await _check_healthy(live_url)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800"}',
        b"[" * 5000,
        b'{"seed": 1e999, "prompt": "bag"}',
        b'{"seed": ' + b"9" * 5000 + b', "prompt": "bag"}',
        b'{"prompt": "bag", "prompt": "hat"}',
        b'{"prompt": "bag", "n": NaN}',
        b"\x1f\x8b\x08gzip",
        '{"prompt": "bag"}'.encode("utf-16"),
        b'{"\\u0000": 1, "prompt": "bag\\u0000"}',
    ],
)
@pytest.mark.parametrize("path", PATHS[:3])
async def test_malformed_bodies(live_url: str, path: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=live_url, timeout=TIMEOUT_S) as client:
        answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 202, 400), answer.text
    assert answer.status_code == 400 or body.count(b"prompt") == 2 or body.startswith((b"\xff", b"\xfe"))


async def test_many_slow_clients_do_not_block_others(live_url: str) -> None:
    host, port = str(urlsplit(live_url).hostname), int(urlsplit(live_url).port or 0)
    slow = [await asyncio.open_connection(host, port) for _ in range(200)]
    for number, (_, writer) in enumerate(slow):
        writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{"[: 10 + number])
    await _check_healthy(live_url)
    for _, writer in slow:
        writer.close()


async def _check_healthy(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        answer = await client.post("/v1/images/generations", json=GOOD)
    assert answer.status_code == 200, answer.text
