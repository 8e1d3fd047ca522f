"""Redis URLs are checked before anything connects, and a server that cannot be used is named."""

from __future__ import annotations

import asyncio
import re

import pytest

from msf_scheduler.connection import check, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.redis_url import check_redis_url


@pytest.mark.parametrize(
    "url",
    [
        "redis://host",
        "redis://host:6379/0",
        "redis://[::1]:6379",
        "redis://user:p%40ss%2Fword@host/15?client_name=msf",
        "redis://host?db=3",
        "rediss://host:6380/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///run/valkey%20one.sock?db=1",
        "unix://user:pass@/run/valkey.sock",
        "redis-cluster://host:6379",
        "rediss-cluster://host?ssl_cert_reqs=none",
        "redis-sentinel://:pass@one:26379,[::2]:26379,three/service",
    ],
)
async def test_a_correct_url_is_taken(url: str) -> None:
    await connect(url).aclose()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "unknown kind"),
        ("localhost:6379", "unknown kind"),
        ("http://host", "unknown kind"),
        ("REDIS://host", "unknown kind"),
        ("redis:/host", "unknown kind"),
        ("redis://", "names no host"),
        ("redis:///0", "names no host"),
        ("redis://:6379", "names no host"),
        ("redis://:hunter2@:6379", "names no host"),
        ("redis://:hunter2@host:port", "invalid port"),
        ("redis://host:0", "invalid port"),
        ("redis://host:65536", "invalid port"),
        ("redis://host:-1", "invalid port"),
        ("redis://:hunt/er2@host", "invalid port"),
        ("redis://:hunter2#x@host", "no part after '#'"),
        ("redis://host/x", "invalid database 'x'"),
        ("redis://host/-1", "invalid database"),
        ("redis://host/0/1", "invalid database"),
        ("redis://host/１", "invalid database"),
        ("redis://host?db=x", "invalid value 'x' of option db"),
        ("redis://host?decode_responses=True", "unknown option 'decode_responses'"),
        ("redis://host?protocol=3", "unknown option 'protocol'"),
        ("redis://host?max_connections=1", "unknown option"),
        ("redis://host?ssl_cert_reqs=none", "unknown option"),
        ("redis://host?x", "malformed options"),
        ("rediss://host?ssl_ca_certs=/no/such/file", "does not exist"),
        ("rediss://host?ssl_cert_reqs=maybe", "invalid value 'maybe'"),
        ("redis://ho st", "no spaces"),
        ("redis://host\n", "no spaces"),
        ("redis://[::1", "malformed address"),
        ("unix://relative.sock", "not absolute"),
        ("unix://host/run/valkey.sock", "not absolute"),
        ("redis-cluster://host/1", "no numbered databases"),
        ("redis-sentinel://host:26379", "names no service"),
        ("redis-sentinel://one,,two/service", "names no host"),
        ("redis-sentinel://one:x/service", "invalid port"),
        ("redis-sentinel://one/service?db=1", "unknown option"),
    ],
)
def test_a_malformed_url_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)) as refused:
        check_redis_url(url)
    assert "Allowed" in str(refused.value) or "does not exist" in str(refused.value)
    assert "hunt" not in str(refused.value)


@pytest.mark.parametrize("reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"ERROR\r\n", b"SSH-2.0\r\n", b"", b"$-7\r\nx"])
async def test_a_server_that_is_no_redis_is_named(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(reply)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}") as redis:
            with pytest.raises(QueueUnavailable, match=f"Redis at 127.0.0.1:{port}"):
                await check(redis)


@pytest.mark.parametrize(("options", "reason"), [("?db=99", "DB index"), ("", None)])
async def test_a_database_must_exist(valkey: EmbeddedValkey, options: str, reason: str | None) -> None:
    async with connect(f"{valkey.url}{options}") as redis:
        if reason is None:
            await check(redis)
        else:
            with pytest.raises(QueueUnavailable, match=reason):
                await check(redis)
