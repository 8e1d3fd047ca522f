"""A model of flow maps jumps from any time to any later one, and is told the guidance scale."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from msf_engine.backends import get_backend
from msf_engine.config import GuidanceConfig, ModelConfig
from msf_engine.denoiser_config import TimeConfig
from msf_engine.eager_network import host_time_embedding
from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion, read_version, save_version
from msf_engine.schedule import flow_schedule, flow_times
from msf_engine.step_table import StepTable
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage
from tests.engine.support import run_to_end
from tests.models import LABELS, flow_map_config, tiny_config, tiny_model, with_stage

REQUEST = SampleRequest(label=1, seed=4, index=0, num_steps=(2, 1), guidance_scale=1.5)


@pytest.fixture(scope="module")
def flow_map_version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """The second version of a model whose first has velocity networks."""
    repository = tmp_path_factory.mktemp("model_repo")
    save_version(repository, "tiny", "1", tiny_model(), LABELS)
    save_version(repository, "tiny", "2", tiny_model(config=flow_map_config()), LABELS)
    assert not read_version(repository, "tiny", "1").config.is_flow_map
    return read_version(repository, "tiny")


@pytest.fixture(scope="module")
def plans(flow_map_version: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    return load_plans(
        flow_map_version, get_backend("eager", "fp32", 1), PlanCache(tmp_path_factory.mktemp("plans")), (1, 2, 4)
    )


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_exact_average_velocities_reach_the_same_data_in_any_number_of_steps(num_steps: int) -> None:
    """The flow of normal data of deviation s is x_r = x_t σ(r) / σ(t) with σ(t)² = (1 - t)² s² + t²."""
    deviation = 0.3
    times = flow_times(num_steps, 2.0)

    def sigma(t: float) -> float:
        return float(np.hypot((1 - t) * deviation, t))

    noise = np.random.default_rng(0).normal(size=(3, 2, 2, 2))

    x = noise
    for (t, r), (a, b, c) in zip(pairwise(times), flow_schedule(times).updates("flow_map"), strict=True):
        x = a * x + b * x * (1 - sigma(r) / sigma(t)) / (t - r) + c
    np.testing.assert_allclose(x, deviation * noise, rtol=1e-5)


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])
def test_the_hosts_embedding_is_that_of_the_denoiser(flow_map_version: ModelVersion, stage: Stage) -> None:
    denoiser = flow_map_version.load().denoiser(stage)
    inputs = np.random.default_rng(0).random((4, 50))
    expected = denoiser.time(*torch.from_numpy(inputs)).numpy()
    stored = HostTimeEmbedding.of(flow_map_version.read_time_embeddings()[stage], TimeConfig())
    for embed in (host_time_embedding(denoiser), stored):
        np.testing.assert_allclose(embed(*inputs), expected, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="a flow map's time embedding needs its interval"):
            embed(*inputs[:2])


def test_the_executor_makes_the_images_of_generate_with_one_row_for_each_sample(plans: ModelPlans) -> None:
    requests = [replace(REQUEST, guidance_scale=scale, index=index) for index, scale in enumerate((1.0, 1.5, 2.0))]
    executor = Executor(plans, 3)
    slots = executor.join(requests)
    images = run_to_end(executor, dict(zip(slots, requests, strict=True)))
    for slot, expected in zip(slots, generate(plans, requests), strict=True):
        assert np.abs(images[slot].astype(int) - expected.astype(int)).max() <= 1

    [slot] = executor.join([REQUEST])
    assert executor.step([slot]).bucket == 1  # guided at scale 1.5, and yet no second row


def test_the_guidance_scale_changes_the_image_up_to_what_the_network_is_told(plans: ModelPlans) -> None:
    scales = (0.0, 1.0, 1.5, 1.51, 2.0, 9.0)
    images = generate(plans, [replace(REQUEST, guidance_scale=scale) for scale in scales])
    zero, one, middle, close, two, nine = images
    assert np.array_equal(zero, one)
    assert np.array_equal(middle, close)
    assert np.array_equal(two, nine)
    assert not np.array_equal(one, middle)
    assert not np.array_equal(middle, two)


def test_many_guidance_scales_share_few_tables(plans: ModelPlans) -> None:
    table = StepTable(plans.config, Stage.BASE, plans.time_embeddings[Stage.BASE])
    offsets = {table.offset(2, scale) for scale in np.linspace(0, 10, 5000)}
    assert len(offsets) == 21  # 1, 1.05 ... 2
    assert len(table) == 2 * len(offsets)


def test_velocity_networks_have_one_table_whatever_the_scale(eager_plans: ModelPlans) -> None:
    table = StepTable(eager_plans.config, Stage.BASE, eager_plans.time_embeddings[Stage.BASE])
    assert table.offset(4, 1.0) == table.offset(4, 3.7) == 0


def test_guidance_by_a_second_row_is_refused_in_a_flow_map() -> None:
    config = with_stage(flow_map_config(), Stage.RESIDUAL, guidance=GuidanceConfig())
    with pytest.raises(ValidationError, match=r"guidance\.interval must be null in every stage of a flow map"):
        ModelConfig.model_validate(config.model_dump())


def test_weights_of_a_velocity_network_are_not_those_of_a_flow_map(tmp_path: Path) -> None:
    save_version(tmp_path, "tiny", "1", tiny_model(), LABELS)
    version = replace(read_version(tmp_path, "tiny"), config=flow_map_config())
    with pytest.raises(Exception, match=r"base\.safetensors"):
        load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path / "plans"), (1,))


def test_configs_of_velocity_networks_stay_as_they_were() -> None:
    assert tiny_config().told_scale(float("inf")) == tiny_config().told_scale(7.3) == 1.0
