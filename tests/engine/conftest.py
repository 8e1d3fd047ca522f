from __future__ import annotations

from pathlib import Path

import pytest

from msf_engine.backends import get_backend
from msf_engine.diffusion_process import FlowProcess, VariancePreservingProcess
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from tests.engine.support import row_by_row
from tests.models import one_stage_config, tiny_repository


@pytest.fixture(scope="session")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    return tiny_repository(tmp_path_factory.mktemp("model_repo"))


@pytest.fixture(scope="session")
def eager_plans(version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    return load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path_factory.mktemp("plans")), (1, 2, 4))


@pytest.fixture(scope="session")
def exact_plans(eager_plans: ModelPlans) -> ModelPlans:
    """The plans of `eager_plans`, which compute row by row: a row's bytes are the same in every batch."""
    return row_by_row(eager_plans)


@pytest.fixture(scope="session", params=["two stages", "one, data at 1", "one, epsilon", "one, epsilon, ab2"])
def any_plans(
    request: pytest.FixtureRequest, exact_plans: ModelPlans, tmp_path_factory: pytest.TempPathFactory
) -> ModelPlans:
    """Plans that compute row by row of a model of each kind."""
    configs = {
        "one, data at 1": one_stage_config(FlowProcess(data_at=1)),
        "one, epsilon": one_stage_config(VariancePreservingProcess(), solver="ddim"),
        "one, epsilon, ab2": one_stage_config(VariancePreservingProcess(timestep_spacing="linspace")),
    }
    if request.param not in configs:
        return exact_plans
    version = tiny_repository(tmp_path_factory.mktemp("model_repo"), config=configs[request.param])
    cache = PlanCache(tmp_path_factory.mktemp("plans"))
    return row_by_row(load_plans(version, get_backend("eager", "fp32", 1), cache, (1, 2, 4)))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that a test may damage."""
    tiny_repository(tmp_path / "model_repo")
    return tmp_path / "model_repo"
