from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.arenas import StepRows
from msf_engine.arenas.device import to_pixels as device_to_pixels
from msf_engine.config import GuidanceConfig
from msf_engine.executor import Executor, SampleRequest
from msf_engine.factorization import up
from msf_engine.generate import denoise, generate
from msf_engine.model import DecodeModule
from msf_engine.model_plans import ModelPlans
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Array, FunctionPlan, Plan, PlanSpec, run, stage_inputs
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise, guide, to_pixels
from msf_engine.schedule import flow_schedule, flow_times
from msf_scheduler.stage import Stage
from msf_training.dataset import to_uint8
from tests.engine.support import Image, fitted, integrate, run_to_end, stages_of
from tests.models import with_stage

REQUESTS = [
    SampleRequest(label=0, seed=1, index=0, num_steps=(4, 2), guidance_scale=1.5),
    SampleRequest(label=1, seed=1, index=1, num_steps=(7, 1), guidance_scale=4.0),
    SampleRequest(label=2, seed=9, index=0, num_steps=(1, 3), guidance_scale=1.0),
    SampleRequest(label=2, seed=9, index=5, num_steps=(3, 2), guidance_scale=0.0),
    SampleRequest(label=0, seed=3, index=0, num_steps=(4, 2), guidance_scale=1.0),
]


def _noise(shape: tuple[int, ...], request: SampleRequest, stream: NoiseStream) -> Tensor:
    return torch.from_numpy(gaussian_noise(shape, seed=request.seed, index=request.index, stream=stream))[None]


@torch.no_grad()
def test_an_image_is_the_decoded_integral_of_both_stages(eager_plans: ModelPlans, version: ModelVersion) -> None:
    """Compare the executor with the mathematics, written out for one sample."""
    request = REQUESTS[0]
    config, model = eager_plans.config, version.load()

    def stage(stage: Stage, noise: Tensor, num_steps: int, cond: Tensor | None) -> Tensor:
        denoiser, level = model.denoiser(stage), torch.full((1,), config.conditioning_noise)
        labels, null = torch.tensor([request.label]), torch.tensor([denoiser.null_label])

        def velocity(x: Tensor, t: float) -> Tensor:
            embedding = denoiser.time(torch.tensor([t], dtype=torch.float64), level)
            conditional: Tensor = denoiser(x, embedding, labels, cond)
            unguided: Tensor = denoiser(x, embedding, null, cond)
            return unguided + request.guidance_scale * (conditional - unguided)

        return integrate(velocity, noise, flow_schedule(flow_times(num_steps)), config.sampling.solver)

    base = stage(Stage.BASE, _noise((2, 2, 2), request, NoiseStream.BASE), 4, None)
    cond = torch.lerp(base, _noise((2, 2, 2), request, NoiseStream.CONDITION), 0.1)
    residual = stage(Stage.RESIDUAL, _noise((6, 2, 2), request, NoiseStream.RESIDUAL), 2, cond)
    pixels = DecodeModule(model).pixels(base, residual)
    executor = Executor(eager_plans, 1)
    [slot] = executor.join([request])
    image = run_to_end(executor, {slot: request})[slot]
    assert image.shape == (16, 16, 1)
    assert np.abs(image.astype(int) - pixels[0].numpy().astype(int)).max() <= 1


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_steps_makes_the_images_of_generate(any_plans: ModelPlans, seed: int) -> None:
    """Random members of random stages, guided and not, in batches that are started before the last one is finished."""
    rng = np.random.default_rng(seed)
    executor = Executor(any_plans, 3)
    requests = fitted([*REQUESTS, replace(REQUESTS[1], negative_label=2)], any_plans.config)
    waiting = list(enumerate(requests))
    numbers: dict[int, int] = {}  # of requests, by slot
    remaining: dict[int, list[Stage]] = {}
    in_flight = []
    images: dict[int, Image] = {}
    while len(images) < len(requests):
        if waiting and executor.num_free_slots and rng.random() < 0.7:
            number, request = waiting.pop()
            [slot] = executor.join([request])
            numbers[slot], remaining[slot] = number, stages_of(request)
        if candidates := [slot for slot, stages in remaining.items() if stages]:
            stage = remaining[rng.choice(candidates)][0]
            members = [slot for slot in candidates if remaining[slot][0] is stage and rng.random() < 0.7]
            if members:
                for slot in members:
                    remaining[slot].pop(0)
                in_flight.append(executor.start(members))
        if in_flight and (len(in_flight) == 2 or rng.random() < 0.3 or not candidates):
            result = executor.finish(in_flight.pop(0))
            images |= {numbers[slot]: image for slot, image in result.images.items()}
    assert executor.num_free_slots == 3
    expected = generate(any_plans, requests)
    assert all(np.array_equal(images[number], image) for number, image in enumerate(expected))
    assert not np.array_equal(expected[1], expected[-1])  # they differ in what they are steered away from


def test_a_guided_sample_takes_two_rows(eager_plans: ModelPlans) -> None:
    executor = Executor(eager_plans, 3)
    unguided, guided, other = executor.join([REQUESTS[2], REQUESTS[0], REQUESTS[1]])
    rows = executor.start([unguided, guided])
    assert isinstance(rows, StepRows)
    assert (rows.num_rows, rows.num_guided, rows.bucket) == (3, 1, 4)
    assert rows.slots.tolist() == [guided, unguided]  # guided samples first
    null_label = eager_plans.config.num_classes
    assert rows.labels.tolist() == [REQUESTS[0].label, REQUESTS[2].label, null_label]
    assert rows.completes.tolist() == [unguided]  # it has one base step
    alone = executor.start([other])
    assert (alone.bucket, isinstance(alone, StepRows) and alone.num_rows) == (2, 2)


def test_guidance_acts_inside_its_interval_only(eager_plans: ModelPlans) -> None:
    guidance = GuidanceConfig(interval=(0.3, 0.8))
    config = eager_plans.config
    executor = Executor(replace(eager_plans, config=with_stage(config, Stage.BASE, guidance=guidance)), 1)
    slots = executor.join(REQUESTS[:1])
    num_rows = []
    for _ in range(4):
        rows = executor.start(slots)
        assert isinstance(rows, StepRows)
        num_rows.append(rows.num_rows)
        executor.finish(rows)
    assert num_rows == [1, 2, 2, 1]  # t = 1, 0.75, 0.5, 0.25


def test_a_stage_without_an_interval_is_never_guided(eager_plans: ModelPlans) -> None:
    config = with_stage(eager_plans.config, Stage.RESIDUAL, guidance=GuidanceConfig(interval=None))
    base_guided_only = replace(eager_plans, config=config)
    guided = replace(REQUESTS[0], guidance_scale=3.0)
    [image] = generate(base_guided_only, [guided])
    assert not np.array_equal(image, generate(eager_plans, [guided])[0])
    assert not np.array_equal(image, generate(eager_plans, [replace(guided, guidance_scale=1.0)])[0])


def test_leaving_frees_the_slot_and_does_not_affect_others(exact_plans: ModelPlans) -> None:
    executor = Executor(exact_plans, 2)
    staying, leaving = executor.join(REQUESTS[:2])
    executor.step([staying, leaving])
    executor.leave(leaving)
    assert executor.num_free_slots == 1
    [successor] = executor.join([REQUESTS[2]])
    rest = replace(REQUESTS[0], num_steps=(3, 2))
    images = run_to_end(executor, {staying: rest, successor: REQUESTS[2]})
    for slot, expected in zip((staying, successor), generate(exact_plans, [REQUESTS[0], REQUESTS[2]]), strict=True):
        assert np.array_equal(images[slot], expected)


@pytest.mark.parametrize("num_batches", [1, 2])
def test_a_slot_that_is_left_under_way_is_free_after_its_last_batch(exact_plans: ModelPlans, num_batches: int) -> None:
    executor = Executor(exact_plans, 2)
    staying, leaving = executor.join(REQUESTS[:2])
    batches = [executor.start([staying, leaving]) for _ in range(num_batches)]
    executor.leave(leaving)
    for batch in batches:
        assert executor.num_free_slots == 0
        executor.finish(batch)
    assert executor.num_free_slots == 1
    [successor] = executor.join([REQUESTS[2]])
    rest = replace(REQUESTS[0], num_steps=(4 - num_batches, 2))
    images = run_to_end(executor, {staying: rest, successor: REQUESTS[2]})
    for slot, expected in zip((staying, successor), generate(exact_plans, [REQUESTS[0], REQUESTS[2]]), strict=True):
        assert np.array_equal(images[slot], expected)


def test_an_image_whose_sample_has_left_is_dropped(eager_plans: ModelPlans) -> None:
    executor = Executor(eager_plans, 1)
    request = SampleRequest(0, 1, 0, (1, 1), 1.0)
    slots = executor.join([request])
    executor.step(slots)
    last_step, decoding = (executor.start(slots) for _ in range(2))
    executor.leave(*slots)
    assert executor.finish(last_step).failed == ()
    assert executor.finish(decoding).images == {}
    assert executor.num_free_slots == 1


def test_a_sample_that_is_not_finite_fails_alone(exact_plans: ModelPlans) -> None:
    executor = Executor(exact_plans, 2)
    healthy, sick = executor.join([REQUESTS[0], replace(REQUESTS[1], guidance_scale=float("inf"))])
    first, second = executor.start([healthy, sick]), executor.start([healthy, sick])
    assert executor.finish(first).failed == (sick,)
    assert executor.finish(second).failed == ()  # it is reported once
    assert executor.num_free_slots == 1
    images = run_to_end(executor, {healthy: replace(REQUESTS[0], num_steps=(2, 2))})
    assert np.array_equal(images[healthy], generate(exact_plans, REQUESTS[:1])[0])


@pytest.mark.parametrize(("total", "split"), [(2, (1, 1)), (3, (2, 1)), (6, (4, 2)), (30, (20, 10))])
def test_stages_split_steps_in_the_ratio_of_their_defaults(
    eager_plans: ModelPlans, total: int, split: tuple[int, int]
) -> None:
    assert eager_plans.config.split_steps(total) == split


@torch.no_grad()
def test_the_first_preview_is_the_base_decoded_alone(eager_plans: ModelPlans, version: ModelVersion) -> None:
    requests = [replace(request, num_steps=(4, 2), guidance_scale=1.5) for request in REQUESTS[:2]]
    executor = Executor(eager_plans, 2)
    slots = executor.join(requests)
    for _ in range(4):
        executor.step(slots)
    previews = executor.preview(slots)
    noise = SampleNoise.of(eager_plans.config, [r.seed for r in requests], [r.index for r in requests])
    labels = np.array([request.label for request in requests])
    bases = torch.from_numpy(denoise(eager_plans, Stage.BASE, noise.stages[0], labels, 4, 1.5))
    mean, std = (torch.tensor(each)[:, None, None] for each in vars(eager_plans.config.stages[0].statistics).values())
    decoded = to_uint8(version.load().autoencoder.decode(up(bases * std + mean)))
    for slot, expected in zip(slots, decoded, strict=True):
        assert np.abs(previews[slot].astype(int) - expected.permute(1, 2, 0).numpy().astype(int)).max() <= 1


def test_previews_approach_the_image_without_advancing_it(exact_plans: ModelPlans) -> None:
    request = replace(REQUESTS[0], num_steps=(4, 6))
    executor = Executor(exact_plans, 1)
    slots = executor.join([request])
    previews: list[NDArray[np.int_]] = []
    for stage in stages_of(request):
        if stage is Stage.RESIDUAL:
            previews.append(executor.preview(slots)[slots[0]].astype(int))
        result = executor.step(slots)
    image = result.images[slots[0]].astype(int)
    assert np.array_equal(image, generate(exact_plans, [request])[0])
    distances = [np.abs(preview - image).mean() for preview in previews]
    assert distances[-1] < distances[0]
    assert executor.preview([]) == {}


@pytest.mark.parametrize("num_started", [1, 3, 5])
def test_a_preview_of_one_stage_is_the_estimate_of_the_data(any_plans: ModelPlans, num_started: int) -> None:
    """The data that the last step's prediction implies is decoded."""
    config = any_plans.config
    if len(config.stages) > 1:
        pytest.skip("two stages")
    outputs: list[NDArray[np.float32]] = []

    def recording(plan: Plan) -> Plan:
        def compute(*inputs: Array) -> Array:
            outputs.append(run(plan, inputs))
            return outputs[-1]

        spec = PlanSpec("", "", Stage.DENOISE, (), stage_inputs(config, Stage.DENOISE))
        return FunctionPlan(spec, compute)

    plans = {**any_plans.by_stage, Stage.DENOISE: recording(any_plans.by_stage[Stage.DENOISE])}
    executor = Executor(replace(any_plans, by_stage=plans), 1)
    slots = executor.join([SampleRequest(0, 1, 0, (6,), 1.0)])
    x = SampleNoise.of(config, [1], [0]).stages[0]
    schedule = config.process.schedule(6)
    d_prev = np.zeros_like(x)
    for a, b, c in schedule.updates(config.sampling.solver)[:num_started]:
        executor.step(slots)
        x, d_prev = a * x + b * outputs[-1] + c * d_prev, outputs[-1]
    s, u = schedule.s_end[num_started - 1], schedule.u_end[num_started - 1]
    data = x / s - (u - schedule.u_data) * d_prev
    [expected] = any_plans.decode([data.astype(np.float32)])
    assert np.abs(executor.preview(slots)[slots[0]].astype(int) - expected.astype(int)).max() <= 1


def test_levels_are_rounded_to_even_and_clipped_to_the_range_of_pixels() -> None:
    levels = np.array([[-3, 0.5, 1.5, 254.6, 255.4], [np.inf, -np.inf, np.nan, 300, 127.5]], np.float32)
    before = levels.copy()
    assert to_pixels(levels).tolist() == [[0, 0, 2, 255, 255], [255, 0, 0, 255, 128]]
    assert np.array_equal(levels, before, equal_nan=True)
    assert device_to_pixels(torch.from_numpy(levels)).tolist() == to_pixels(levels).tolist()


def test_guidance_leaves_channels_after_the_first_alone() -> None:
    positive, negative = (np.random.default_rng(seed).normal(size=(2, 3, 2, 2)).astype(np.float32) for seed in (0, 1))
    scale = np.float32(4)
    guided = guide(positive, negative, scale, 2)
    assert np.array_equal(guided[:, :2], guide(positive, negative, scale)[:, :2])
    assert np.array_equal(guided[:, 2:], positive[:, 2:])


def test_a_preview_shows_the_steps_that_are_under_way(exact_plans: ModelPlans) -> None:
    previews = []
    for is_finished in (True, False):
        executor = Executor(exact_plans, 1)
        slots = executor.join(REQUESTS[:1])
        for _ in range(4):
            executor.step(slots)
        rows = executor.start(slots)
        if is_finished:
            executor.finish(rows)
        previews.append(executor.preview(slots)[slots[0]])
    assert np.array_equal(previews[0], previews[1])
