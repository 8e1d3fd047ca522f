from __future__ import annotations

import pytest
from redis.asyncio import Redis

from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue


@pytest.fixture
def queue(redis: Redis) -> JobQueue:
    return JobQueue(redis)


@pytest.fixture
def leases(redis: Redis) -> Leases:
    return Leases(redis)


@pytest.fixture
def dying(redis: Redis) -> Leases:
    """Return leases that expire at once, as if the worker had died."""
    return Leases(redis, lease_s=0.0)
