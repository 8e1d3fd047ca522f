"""Compressed request bodies, under `/v1` and `/v2` alike."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

INFERENCE = {"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", "data": [8]}]}
BODIES = {
    "/v1/images/generations": json.dumps({"prompt": "bag"}).encode(),
    "/v1/jobs": json.dumps({"prompt": "bag"}).encode(),
    "/v2/models/fashion/infer": json.dumps(INFERENCE).encode(),
    "/v2/repository/index": b'{"ready": true}',
}
JSON = {"Content-Type": "application/json"}
PLAIN = BODIES["/v1/jobs"]

paths = pytest.mark.parametrize("path", BODIES)


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 7):
        yield body[start : start + 7]


@paths
async def test_compressed_bodies_are_decoded(client: httpx.AsyncClient, path: str) -> None:
    body = BODIES[path]
    zipped, deflated = gzip.compress(body), zlib.compress(body)
    for coding, content in (
        *(("gzip", zipped), ("GZIP", zipped), ("x-gzip", zipped), (" gzip ,", zipped), ("identity, gzip", zipped)),
        *(("deflate", deflated), ("Deflate", deflated), ("identity", body), ("", body)),
        *(("gzip, deflate", zlib.compress(zipped)), ("deflate,gzip", gzip.compress(deflated))),
    ):
        for pieces in (content, in_pieces(content)):
            answer = await client.post(path, content=pieces, headers={**JSON, "Content-Encoding": coding})
            assert answer.is_success, (coding, answer.text)


@paths
async def test_other_codings_are_named(client: httpx.AsyncClient, path: str) -> None:
    for coding, named in (
        *(
            ("br", '"br"'),
            ("zstd", '"zstd"'),
            ("gzip, br", '"br"'),
            ("compress", '"compress"'),
            ("gzip;q=1", '"gzip;q=1"'),
        ),
        (", ".join(["gzip"] * 5), "at most 4"),
    ):
        answer = await client.post(path, content=BODIES[path], headers={**JSON, "Content-Encoding": coding})
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")
        assert named in str(answer.json()["error"]).replace("\\", "")
        assert "Allowed: gzip, deflate, identity" in answer.text


@paths
async def test_bodies_that_are_not_what_they_are_labelled(client: httpx.AsyncClient, path: str) -> None:
    body = BODIES[path]
    zipped = gzip.compress(body)
    corrupt = bytearray(zipped)
    corrupt[-6] ^= 1  # the checksum
    for coding, content in (
        *(("gzip", body), ("deflate", body), ("gzip", b""), ("deflate", zipped), ("gzip", b"\x1f\x8b")),
        *(
            ("gzip", zipped[:-1]),
            ("gzip", zipped[: len(zipped) // 2]),
            ("gzip", zipped + b"x"),
            ("gzip", bytes(corrupt)),
        ),
        *(("gzip", zipped * 2), ("gzip, gzip", zipped), ("deflate", zlib.compress(body)[:-2])),
    ):
        answer = await client.post(path, content=content, headers={**JSON, "Content-Encoding": coding})
        assert answer.status_code == 400, (coding, content)
        assert "The body is not valid " in answer.text


@paths
async def test_the_limit_holds_for_what_is_decoded(client: httpx.AsyncClient, path: str) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    noise = random.Random(0).randbytes(70_000)
    for coding, content in (
        *(("gzip", bomb), ("deflate", zlib.compress(bytes(66_000))), ("gzip, gzip", gzip.compress(bomb))),
        ("gzip", gzip.compress(noise)),
    ):
        answer = await client.post(path, content=content, headers={**JSON, "Content-Encoding": coding})
        assert (answer.status_code, "65536 bytes" in answer.text) == (413, True)


async def test_a_request_without_a_body_may_name_any_coding(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models", headers={"Content-Encoding": "br"})).status_code == 200
