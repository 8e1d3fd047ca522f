"""Fixtures of several packages' tests: a real Valkey, and Prometheus's own checks."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from redis.asyncio import Redis

from msf_scheduler.connection import connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from tests.promtool import Promtool

settings.register_profile("patient", deadline=None)  # the machine may be busy
settings.load_profile("patient")


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield valkey


@pytest.fixture
async def redis_url(valkey: EmbeddedValkey) -> str:
    """The URL of an empty server."""
    async with connect(valkey.url) as redis:
        await redis.flushall()
    return valkey.url


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with connect(redis_url) as redis:
        assert isinstance(redis, Redis)
        yield redis


@pytest.fixture(scope="session")
def plan_cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plan cache of the whole run: the first process that needs a plan builds it, and others wait."""
    folder = tmp_path_factory.getbasetemp()
    cache = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "plan_cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    return Promtool()
