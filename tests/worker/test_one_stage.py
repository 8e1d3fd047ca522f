"""A model of one stage passes the queue, the policy and the executor as one of two stages does."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from redis.asyncio import Redis

from msf_engine.backends import get_backend
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobState, Terms
from msf_worker.image_encoder import PARAMETERS
from tests.models import ddpm_config, tiny_repository
from tests.worker.support import SPEC, assert_same, generated_alone, pixels, running


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return tiny_repository(tmp_path_factory.mktemp("model_repo"), config=ddpm_config())


@pytest.fixture(scope="module")
def dit_plans(dit: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    return load_plans(dit, get_backend("eager", "fp32", 1), PlanCache(tmp_path_factory.mktemp("plans")), (1, 2, 4, 8))


async def test_a_job_of_one_stage_is_served(redis: Redis, dit: ModelVersion, dit_plans: ModelPlans) -> None:
    spec = SPEC.model_copy(update={"num_samples": 3, "num_steps": 5})
    steered = spec.model_copy(update={"negative_label": 1})
    async with running(redis, dit, dit_plans) as worker:
        job_ids = [await worker.admit(each, Terms(num_previews=2)) for each in (spec, steered)]
        for job_id, each in zip(job_ids, (spec, steered), strict=True):
            job = await worker.end_of(job_id)
            assert job.state is JobState.SUCCEEDED
            assert job.timings is not None
            assert job.timings.denoise_ms > 0
            assert job.timings.base_ms == job.timings.residual_ms == 0
            files = await worker.images(job_id)
            for file, expected in zip(files, generated_alone(dit_plans, each), strict=True):
                assert_same(pixels(file), expected)
            parameters = json.loads(Image.open(io.BytesIO(files[0])).info[PARAMETERS])
            assert parameters.get("negative_label") == each.negative_label
        assert await worker.images(job_ids[0]) != await worker.images(job_ids[1])
        assert worker.count("msf_steps_total", stage="denoise") == 2 * 3 * 5
        assert worker.count("msf_stage_seconds_count", stage="denoise") == 2
        assert not worker.count("msf_stage_seconds_count", stage="base")
