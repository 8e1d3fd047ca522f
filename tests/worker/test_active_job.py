"""Work of a job's samples, as the batching policy sees it."""

import pytest
from msf_scheduler.legacy_step_costs import Work

from msf_engine.config import GuidanceConfig, ModelConfig
from msf_worker.active_job import work_of
from tests.models import tiny_config


def guided_in(interval: tuple[float, float] | None) -> ModelConfig:
    config = tiny_config()
    residual = config.residual.model_copy(update={"guidance": GuidanceConfig(interval=interval)})
    return config.model_copy(update={"residual": residual})


@pytest.mark.parametrize(("interval", "guided"), [((0.0, 1.0), True), ((0.2, 0.6), False), (None, False)])
def test_work_counts_as_guided_only_if_every_step_is(interval: tuple[float, float] | None, guided: bool) -> None:
    """Jobs are expired by the least that their work can cost, so it must not be overestimated."""
    config = guided_in(interval)
    assert work_of(config, 6, 1.5) == Work(4, 2, True, guided)
    assert work_of(config, 6, 1.0) == Work(4, 2, False, False)
