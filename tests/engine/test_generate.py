"""`generate` makes the images of the executor, to the byte."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from msf_engine.eager_network import eager_network, host_time_embedding
from msf_engine.errors import PlanError
from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import denoise, generate
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise, sample, stage_trajectory
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.engine.support import run_to_end

REQUESTS = [SampleRequest(index % 3, 5, index, (4, 2), 1.5) for index in range(4)]


def _executed(plans: ModelPlans, requests: list[SampleRequest]) -> list[NDArray[np.uint8]]:
    """Images of requests that the executor advances together, in one batch."""
    executor = Executor(plans, len(requests))
    slots = executor.join(requests)
    images = run_to_end(executor, dict(zip(slots, requests, strict=True)))
    return [images[slot] for slot in slots]


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_images_are_those_of_the_executor(exact_plans: ModelPlans, count: int, scale: float) -> None:
    requests = [replace(request, guidance_scale=scale) for request in REQUESTS[:count]]
    for image, expected in zip(generate(exact_plans, requests), _executed(exact_plans, requests), strict=True):
        assert np.array_equal(image, expected)


def test_images_are_in_the_order_of_the_requests(eager_plans: ModelPlans) -> None:
    requests = [
        SampleRequest(index % 3, 9, index, (2 + index % 2, 1), scale)
        for index, scale in enumerate((1.5, 1.0, 3.0, 1.5, 1.5, 1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5))
    ]
    for image, request in zip(generate(eager_plans, requests), requests, strict=True):
        [alone] = generate(eager_plans, [request])
        assert np.abs(image.astype(int) - alone.astype(int)).max() <= 1


def test_strict_images_do_not_depend_on_their_batch(eager_plans: ModelPlans) -> None:
    images = generate(eager_plans, REQUESTS, strict=True)
    for image, request in zip(images, REQUESTS, strict=True):
        assert np.array_equal(image, generate(eager_plans, [request], strict=True)[0])


def test_strict_images_need_a_strict_bucket(eager_plans: ModelPlans) -> None:
    plans = replace(eager_plans, strict=dict.fromkeys(TWO_STAGES, ()))
    with pytest.raises(PlanError, match="no strict images: a row's bytes in stage base depend on its batch"):
        generate(plans, REQUESTS, strict=True)


def test_an_image_that_is_not_finite_is_an_error(eager_plans: ModelPlans) -> None:
    requests = [REQUESTS[0], replace(REQUESTS[1], guidance_scale=float("inf"))]
    with pytest.raises(ValueError, match="image 1 is not finite; lower its guidance scale"):
        generate(eager_plans, requests)


def test_sampling_the_networks_is_sampling_their_plans(eager_plans: ModelPlans, version: ModelVersion) -> None:
    config, model = eager_plans.config, version.load()
    noise, labels = SampleNoise.of(config, [1] * 4, range(4)), np.array([0, 1, 2, 0])
    for stage, start, cond in (
        (Stage.BASE, noise.stages[0], None),
        (Stage.RESIDUAL, noise.stages[1], noise.condition),
    ):
        denoiser = model.denoiser(stage)
        trajectory = stage_trajectory(config, stage, host_time_embedding(denoiser), 5, 2.0)
        eager = sample(eager_network(denoiser), trajectory, start, labels, denoiser.null_label, cond)
        planned = denoise(eager_plans, stage, start, labels, 5, 2.0, cond)
        np.testing.assert_allclose(eager, planned, rtol=1e-5, atol=1e-5)
