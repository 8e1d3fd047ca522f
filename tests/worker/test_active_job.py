"""Steps of a job's samples, as the batching policy sees them."""

from __future__ import annotations

import pytest

from msf_engine.config import GuidanceConfig, ModelConfig
from msf_scheduler.stage import Stage
from msf_worker.active_job import pattern_of
from tests.models import tiny_config, with_stage


def guided_in(interval: tuple[float, float] | None) -> ModelConfig:
    return with_stage(tiny_config(), Stage.RESIDUAL, guidance=GuidanceConfig(interval=interval))


@pytest.mark.parametrize(
    ("interval", "residual_rows"), [((0.0, 1.0), (2, 2)), ((0.2, 0.6), (1, 2)), (None, (1, 1))], ids=str
)
def test_a_step_takes_two_rows_where_guidance_acts(
    interval: tuple[float, float] | None, residual_rows: tuple[int, int]
) -> None:
    """Jobs are expired by the least that their steps can cost, so rows must not be overestimated."""
    config = guided_in(interval)
    guided, unguided = (pattern_of(config, 6, scale) for scale in (1.5, 1.0))
    assert guided.stages == unguided.stages == (0, 0, 0, 0, 1, 1, 2)
    assert guided.rows == (2, 2, 2, 2, *residual_rows, 1)
    assert unguided.rows == (1,) * 7
