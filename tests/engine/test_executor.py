from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.config import GuidanceConfig
from msf_engine.executor import Executor, SampleRequest
from msf_engine.factorization import up
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans, plan_kinds
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.repository import ModelVersion
from msf_engine.schedule import timesteps
from msf_scheduler.stage import Stage
from msf_training.dataset import to_uint8
from tests.engine.support import integrate

REQUESTS = [
    SampleRequest(label=0, seed=1, index=0, num_base_steps=4, num_residual_steps=2, guidance_scale=1.5),
    SampleRequest(label=1, seed=1, index=1, num_base_steps=7, num_residual_steps=1, guidance_scale=4.0),
    SampleRequest(label=2, seed=9, index=0, num_base_steps=1, num_residual_steps=3, guidance_scale=1.0),
    SampleRequest(label=2, seed=9, index=5, num_base_steps=3, num_residual_steps=2, guidance_scale=0.0),
]


def _advance(executor: Executor, numbers: list[int]) -> dict[int, NDArray[np.uint8]]:
    return dict(executor.step(numbers).images)


def test_an_image_is_the_decoded_integral_of_both_stages(eager_plans: ModelPlans, version: ModelVersion) -> None:
    """Compare the executor with the mathematics, written out for one sample."""
    request = REQUESTS[0]
    config, model = eager_plans.config, version.load()

    def stage(stage: Stage, stream: NoiseStream, num_steps: int, cond: Tensor, shape: tuple[int, ...]) -> Tensor:
        denoiser, level = model.denoiser(stage), torch.full((1,), config.conditioning_noise)
        labels, null = torch.tensor([request.label]), torch.tensor([denoiser.null_label])

        def velocity(x: Tensor, t: float) -> Tensor:
            embedding = denoiser.time(torch.tensor([t], dtype=torch.float64), level)
            conditional: Tensor = denoiser(x, embedding, labels, cond)
            unguided: Tensor = denoiser(x, embedding, null, cond)
            return unguided + request.guidance_scale * (conditional - unguided)

        noise = gaussian_noise(shape, seed=request.seed, index=request.index, stream=stream)[None]
        return integrate(velocity, noise, timesteps(num_steps), config.sampling.solver)

    base = stage(Stage.BASE, NoiseStream.BASE, 4, torch.empty(1, 0, 2, 2), (2, 2, 2))
    blur = gaussian_noise((2, 2, 2), seed=request.seed, index=request.index, stream=NoiseStream.CONDITION)[None]
    residual = stage(Stage.RESIDUAL, NoiseStream.RESIDUAL, 2, torch.lerp(base, blur, 0.1), (6, 2, 2))
    (pixels,) = eager_plans.by_kind[Stage.DECODE, False][1](base, residual)
    (image,) = generate(eager_plans, [request])
    assert np.abs(image.astype(int) - pixels[0].numpy().astype(int)).max() <= 1


def test_samples_do_not_depend_on_their_batch(eager_plans: ModelPlans) -> None:
    alone = [generate(eager_plans, [request])[0] for request in REQUESTS]
    together = generate(eager_plans, REQUESTS)
    for one, other in zip(alone, together, strict=True):
        assert one.shape == (16, 16, 1)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_samples_at_different_steps_share_a_batch(eager_plans: ModelPlans) -> None:
    executor = Executor(eager_plans, 2)
    early = executor.join(REQUESTS[1])
    executor.step([early])
    executor.step([early])
    late = executor.join(REQUESTS[0])
    executor.step([early, late])
    assert (executor.slots[early].step, executor.slots[late].step) == (3, 1)
    assert executor.slots[early].steps_left == (4, 1)
    images: dict[int, NDArray[np.uint8]] = {}
    while executor.slots:
        stage = max(slot.stage for slot in executor.slots.values())
        images |= _advance(executor, [n for n, slot in executor.slots.items() if slot.stage is stage])
    expected = [generate(eager_plans, [REQUESTS[number]])[0] for number in (1, 0)]
    for slot, image in zip((early, late), expected, strict=True):
        assert np.abs(images[slot].astype(int) - image.astype(int)).max() <= 1


def test_leaving_frees_the_slot_and_does_not_affect_others(eager_plans: ModelPlans) -> None:
    executor = Executor(eager_plans, 2)
    staying, leaving = executor.join(REQUESTS[0]), executor.join(REQUESTS[1])
    executor.step([staying, leaving])
    executor.leave(leaving)
    assert executor.num_free_slots == 1
    images: dict[int, NDArray[np.uint8]] = {}
    while executor.slots:
        images |= _advance(executor, [staying])
    expected = generate(eager_plans, [REQUESTS[0]])[0]
    assert np.abs(images[staying].astype(int) - expected.astype(int)).max() <= 1


def test_a_sample_that_is_not_finite_fails_alone(eager_plans: ModelPlans) -> None:
    executor = Executor(eager_plans, 2)
    healthy, sick = executor.join(REQUESTS[0]), executor.join(REQUESTS[1])
    executor.slots[sick].x[0, 0, 0] = torch.nan
    result = executor.step([healthy, sick])
    assert result.failed == (sick,)
    assert list(executor.slots) == [healthy]
    assert executor.slots[healthy].x.isfinite().all()


def test_guidance_acts_inside_its_interval_only(eager_plans: ModelPlans) -> None:
    guidance = GuidanceConfig(interval=(0.3, 0.8))
    config = eager_plans.config
    config = config.model_copy(update={"base": config.base.model_copy(update={"guidance": guidance})})
    executor = Executor(replace(eager_plans, config=config), 1)
    slot = executor.slots[executor.join(REQUESTS[0])]
    assert slot.trajectory.guided == (False, True, True, False)  # t = 1, 0.75, 0.5, 0.25


def test_a_stage_that_is_never_guided_needs_no_guided_plan(eager_plans: ModelPlans) -> None:
    residual = eager_plans.config.residual.model_copy(update={"guidance": GuidanceConfig(interval=None)})
    config = eager_plans.config.model_copy(update={"residual": residual})
    kinds = plan_kinds(config)
    assert set(plan_kinds(eager_plans.config)) - set(kinds) == {(Stage.RESIDUAL, True)}
    by_kind = {kind: eager_plans.by_kind[kind] for kind in kinds}
    guided = replace(REQUESTS[0], guidance_scale=3.0)
    base_guided_only = generate(replace(eager_plans, config=config, by_kind=by_kind), [guided])
    assert not np.array_equal(base_guided_only[0], generate(eager_plans, [guided])[0])
    unguided = replace(guided, guidance_scale=1.0)
    assert not np.array_equal(base_guided_only[0], generate(eager_plans, [unguided])[0])


@pytest.mark.parametrize(("total", "split"), [(2, (1, 1)), (3, (2, 1)), (6, (4, 2)), (30, (20, 10))])
def test_stages_split_steps_in_the_ratio_of_their_defaults(
    eager_plans: ModelPlans, total: int, split: tuple[int, int]
) -> None:
    assert eager_plans.config.split_steps(total) == split


def test_the_first_preview_is_the_base_decoded_alone(eager_plans: ModelPlans, version: ModelVersion) -> None:
    model = version.load()
    executor = Executor(eager_plans, 2)
    slots = [executor.join(request) for request in REQUESTS[:2]]
    while any(executor.slots[slot].stage is Stage.BASE for slot in slots):
        executor.step([slot for slot in slots if executor.slots[slot].stage is Stage.BASE])
    previews = executor.preview(slots)
    for slot in slots:
        base = executor.slots[slot].base
        mean, std = (torch.tensor(each)[:, None, None] for each in vars(eager_plans.config.base.statistics).values())
        with torch.inference_mode():
            decoded = model.autoencoder.decode(up((base * std + mean)[None]))[0]
        assert np.array_equal(previews[slot], to_uint8(decoded).permute(1, 2, 0).numpy())


def test_previews_approach_the_image_without_advancing_it(eager_plans: ModelPlans) -> None:
    request = replace(REQUESTS[0], num_residual_steps=6)
    executor = Executor(eager_plans, 1)
    slot = executor.join(request)
    previews = []
    while executor.slots[slot].stage is not Stage.DECODE:
        executor.step([slot])
        if executor.slots[slot].stage is Stage.RESIDUAL:
            previews.append(executor.preview([slot])[slot].astype(int))
    image = executor.step([slot]).images[slot].astype(int)
    assert np.array_equal(image, generate(eager_plans, [request])[0].astype(int))
    distances = [np.abs(preview - image).mean() for preview in previews]
    assert distances[-1] < distances[0]
    assert executor.preview([]) == {}
