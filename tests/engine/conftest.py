from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from msf_engine.backends import get_backend
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import FunctionPlan, Plan, PlanSpec, stage_inputs
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.engine.support import by_row
from tests.models import tiny_repository


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return tiny_repository(tmp_path_factory.mktemp("model_repo"))


@pytest.fixture(scope="session")
def eager_plans(version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    return load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path_factory.mktemp("plans")), (1, 2, 4))


@pytest.fixture(scope="session")
def exact_plans(eager_plans: ModelPlans) -> ModelPlans:
    """The plans of `eager_plans`, which compute row by row: a row's bytes are the same in every batch."""
    buckets = dict.fromkeys(TWO_STAGES, (1, 2, 4, 8))
    by_stage: dict[Stage, Plan] = {
        stage: FunctionPlan(PlanSpec("", "", stage, (), stage_inputs(eager_plans.config, stage)), by_row(plan))
        for stage, plan in eager_plans.by_stage.items()
    }
    return replace(eager_plans, buckets=buckets, strict=buckets, by_stage=by_stage)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that a test may damage."""
    tiny_repository(tmp_path / "model_repo")
    return tmp_path / "model_repo"
