"""Configs of one or two stages, and of either format version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from msf_engine.config import GuidanceConfig, ModelConfig
from msf_engine.diffusion_process import FlowProcess
from msf_scheduler.stage import Stage
from tests.models import ddpm_config, flow_map_config, one_stage_config, tiny_config, with_stage

MODEL_REPO = Path(__file__).parents[2] / "model_repo"


def as_version_1(config: ModelConfig) -> dict[str, Any]:
    """Return a two-stage flow's fields as files of version 1 have them."""
    fields = config.model_dump(mode="json")
    base, residual = fields.pop("stages")
    del base["conditioning_noise"], base["name"], residual["name"], base["guidance"]["channels"]
    del residual["guidance"]["channels"]
    sampling = {**fields["sampling"], "time_shift": fields.pop("process")["shift"]}
    level = residual.pop("conditioning_noise")
    changes = {"format_version": 1, "base": base, "residual": residual, "conditioning_noise": level}
    return {**fields, **changes, "sampling": sampling}


@pytest.mark.parametrize("make", [tiny_config, flow_map_config, one_stage_config, ddpm_config])
def test_a_config_is_read_as_it_was_written(make: Any) -> None:
    config = make()
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_version_1_is_read_as_before() -> None:
    config = tiny_config().model_copy(update={"process": FlowProcess(shift=2.0)})
    assert ModelConfig.model_validate(as_version_1(config)) == config


@pytest.mark.parametrize("name", ["emoji", "fashion-mnist"])
def test_shipped_models_have_two_stages(name: str) -> None:
    fields = json.loads((MODEL_REPO / name / "config.json").read_text())
    config = ModelConfig.model_validate(fields)
    assert config.denoising_stages == (Stage.BASE, Stage.RESIDUAL)
    assert config.conditioning_noise == 0.1


@pytest.mark.parametrize("missing", ["base", "residual", "sampling"])
def test_a_version_1_without_a_part_is_refused(missing: str) -> None:
    fields = {name: value for name, value in as_version_1(tiny_config()).items() if name != missing}
    with pytest.raises(ValidationError, match=f"{missing} must be an object"):
        ModelConfig.model_validate(fields)


def _refused(config: ModelConfig, **changes: object) -> str:
    with pytest.raises(ValidationError) as raised:
        ModelConfig.model_validate({**config.model_dump(), **changes})
    return str(raised.value)


def test_stages_that_make_no_model_are_refused() -> None:
    stages = [stage.model_dump() for stage in tiny_config().stages]
    assert "stages are base; allowed: denoise, or base and residual" in _refused(tiny_config(), stages=stages[:1])
    reversed_stages = "stages are residual, base; allowed"
    assert reversed_stages in _refused(tiny_config(), stages=stages[::-1])


def test_a_stage_of_another_size_is_refused() -> None:
    config = one_stage_config()
    denoiser = config.stages[0].denoiser.model_copy(update={"size": 2})
    message = _refused(with_stage(config, Stage.DENOISE, denoiser=denoiser))
    assert "denoise.denoiser.size is 2; this latent (2 channels, 4²) needs 4" in message


def test_what_a_stage_cannot_have_is_refused() -> None:
    config = one_stage_config()
    guidance = GuidanceConfig(channels=3)
    assert "denoise.guidance.channels is 3; allowed: 1 to 2" in _refused(
        with_stage(config, Stage.DENOISE, guidance=guidance)
    )
    assert "denoise.conditioning_noise must be 0" in _refused(with_stage(config, Stage.DENOISE, conditioning_noise=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "euler"}, "sampling.solver is euler; allowed with a variance_preserving process: ddim, ab2"),
        ({"solver": "flow_map"}, "allowed with a variance_preserving process: ddim, ab2"),
        ({"max_num_steps": 1001}, "sampling.max_num_steps is 1001; this process allows 1000"),
        ({"max_num_steps": 4}, "default_num_steps is 5; sampling.max_num_steps is 4"),
    ],
)
def test_sampling_that_does_not_fit_the_process_is_refused(changes: dict[str, object], message: str) -> None:
    config = ddpm_config()
    assert message in _refused(config, sampling={**config.sampling.model_dump(), **changes})


@pytest.mark.parametrize(("num_steps", "split"), [(1, (1,)), (7, (7,))])
def test_one_stage_has_all_steps(num_steps: int, split: tuple[int, ...]) -> None:
    assert one_stage_config().split_steps(num_steps) == split
