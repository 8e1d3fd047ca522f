from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from msf_engine.backends import get_backend
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from tests.models import tiny_repository
from tests.worker.support import RunningWorker, running


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return tiny_repository(tmp_path_factory.mktemp("model_repo"))


@pytest.fixture(scope="session")
def plans(version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    backend = get_backend("eager", "fp32", 1)
    return load_plans(version, backend, PlanCache(tmp_path_factory.mktemp("plans")), (1, 2, 4, 8))


@pytest.fixture
async def worker(redis: Redis, version: ModelVersion, plans: ModelPlans) -> AsyncIterator[RunningWorker]:
    async with running(redis, version, plans) as worker:
        yield worker
