"""Samples on a device: on the CPU byte by byte what `generate` makes; on a GPU also CUDA graphs and their memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine import cuda_graph
from msf_engine.arenas import DecodeRows, StepRows, device
from msf_engine.arenas.choice import make_arenas
from msf_engine.arenas.device import DeviceArenas
from msf_engine.arenas.host import HostArenas
from msf_engine.backends import BackendName, Precision, get_backend
from msf_engine.device_plan import DevicePlan
from msf_engine.errors import PlanError
from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import generate
from msf_engine.model import MsfModel
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan, PlanSpec, run, stage_inputs
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion
from msf_engine.sampling import SampleNoise
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.engine.support import fitted, network_of

CPU = torch.device("cpu")
BUCKETS = (1, 2, 4, 8)
SCALES = (1.0, 1.5, 4.0, 0.0, 1.0)
Images = dict[SampleRequest, NDArray[np.uint8]]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def requests(count: int, *, guided: bool = True) -> list[SampleRequest]:
    return [
        SampleRequest(n % 3, 11, n, (1 + n % 5, 1 + n % 3), SCALES[n % len(SCALES)] if guided else 1.0)
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def model(version: ModelVersion) -> MsfModel:
    return version.load()


@pytest.fixture(scope="module")
def plans(eager_plans: ModelPlans, model: MsfModel) -> ModelPlans:
    """Plans of the networks in eager float32, on torch's CPU device."""
    return with_networks(eager_plans, {stage: network_of(model, stage) for stage in TWO_STAGES})


def with_networks(plans: ModelPlans, networks: Mapping[Stage, Any], buckets: tuple[int, ...] = BUCKETS) -> ModelPlans:
    inputs = {stage: stage_inputs(plans.config, stage) for stage in networks}
    by_stage = {
        stage: DevicePlan(PlanSpec("tiny:1", "", stage, buckets, inputs[stage]), network, CPU)
        for stage, network in networks.items()
    }
    return replace(plans, by_stage=by_stage, buckets=dict.fromkeys(networks, buckets))


def at_bucket(plans: ModelPlans, bucket: int) -> ModelPlans:
    return replace(plans, buckets=dict.fromkeys(plans.by_stage, (bucket,)))


class Driver:
    """Advances random samples of an executor by random batches, the next of which starts before the last ends."""

    def __init__(self, executor: Executor, bucket: int, seed: int) -> None:
        self.executor = executor
        self.names = executor.plans.config.all_stages
        self.bucket = bucket
        self.random = random.Random(seed)
        self.stages: dict[int, Stage] = {}  # after the batches that have started
        self.steps: dict[int, list[int]] = {}
        self.requests: dict[int, SampleRequest] = {}
        self.in_flight: list[StepRows | DecodeRows] = []
        self.images: Images = {}
        self.num_left = 0

    def join(self, waiting: list[SampleRequest]) -> None:
        for slot, request in zip(self.executor.join(waiting), waiting, strict=True):
            self.requests[slot] = request
            self.stages[slot] = self.names[0]
            self.steps[slot] = list(request.num_steps)

    def leave(self, slot: int) -> SampleRequest:
        """End a sample that may be in batches under way, and return its request."""
        self.executor.leave(slot)
        self.num_left += 1
        del self.stages[slot]
        return self.requests.pop(slot)

    def start(self) -> None:
        stage = self.random.choice(sorted(set(self.stages.values())))
        slots, num_rows = [], 0
        for slot in self.random.sample(sorted(self.stages), len(self.stages)):
            rows = 1 if stage is Stage.DECODE or self.requests[slot].guidance_scale == 1 else 2
            if self.stages[slot] is stage and num_rows + rows <= self.bucket:
                slots.append(slot)
                num_rows += rows
        self.in_flight.append(self.executor.start(slots, self.bucket))
        for slot in slots:
            self._count_step(slot, stage)

    def finish(self) -> None:
        for slot, image in self.executor.finish(self.in_flight.pop(0)).images.items():
            self.images[self.requests.pop(slot)] = image

    def run(self, waiting: list[SampleRequest], leaving: float = 0) -> Images:
        """Return the images of all requests; those of samples that leave join again."""
        while waiting or self.stages or self.in_flight:
            if waiting and self.executor.num_free_slots and self.random.random() < 0.5:
                count = self.random.randint(1, min(len(waiting), self.executor.num_free_slots))
                self.join(waiting[:count])
                waiting = waiting[count:]
            if self.stages and self.random.random() < leaving:
                waiting = [*waiting, self.leave(self.random.choice(sorted(self.stages)))]
            if self.stages and len(self.in_flight) < 2:
                self.start()
            elif self.in_flight:
                self.finish()
        return self.images

    def _count_step(self, slot: int, stage: Stage) -> None:
        if stage is Stage.DECODE:
            del self.stages[slot]
            return
        position = self.names.index(stage)
        self.steps[slot][position] -= 1
        if not self.steps[slot][position]:
            self.stages[slot] = self.names[position + 1]


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("seed", range(3))
def test_images_are_those_of_generate_whatever_the_batches(plans: ModelPlans, bucket: int, seed: int) -> None:
    sample_requests = requests(12, guided=bucket > 1)
    images = Driver(Executor(plans, 5), bucket, seed).run(sample_requests)
    expected = generate(at_bucket(plans, bucket), sample_requests)
    for request, image in zip(sample_requests, expected, strict=True):
        assert np.array_equal(images[request], image), request


@pytest.mark.parametrize("bucket", [1, 4])
def test_images_of_any_kind_of_model_are_those_of_generate(any_plans: ModelPlans, bucket: int) -> None:
    """Networks in the place of the plans' own: they compute row by row, and all else is on the device."""
    networks = {stage: partial(_on_device, plan) for stage, plan in any_plans.by_stage.items()}
    plans = with_networks(any_plans, networks)
    sample_requests = fitted(requests(9, guided=bucket > 1), plans.config)
    if bucket > 1:
        sample_requests += [replace(request, negative_label=(request.label + 1) % 3) for request in sample_requests]
    executor = Executor(plans, 5)
    assert isinstance(executor._arenas, DeviceArenas)
    images = Driver(executor, bucket, 0).run(sample_requests)
    expected = generate(at_bucket(any_plans, bucket), sample_requests)
    for request, image in zip(sample_requests, expected, strict=True):
        assert np.array_equal(images[request], image), request


def _on_device(plan: Plan, *inputs: Tensor) -> Tensor:
    return torch.from_numpy(run(plan, [tensor.numpy() for tensor in inputs]))


@pytest.mark.parametrize("seed", range(3))
def test_samples_that_leave_under_way_do_not_touch_the_next_in_their_slot(plans: ModelPlans, seed: int) -> None:
    sample_requests = requests(8)
    driver = Driver(Executor(plans, 3), 4, seed)
    images = driver.run(sample_requests, leaving=0.2)
    assert driver.num_left > 3
    for request, image in zip(sample_requests, generate(at_bucket(plans, 4), sample_requests), strict=True):
        assert np.array_equal(images[request], image), request


def test_previews_are_those_of_arenas_in_the_hosts_memory(plans: ModelPlans) -> None:
    sample_requests = [replace(request, num_steps=(request.num_steps[0], 3)) for request in requests(3)]
    executors = [Executor(plans, 3, arenas(plans, 3)) for arenas in (DeviceArenas, HostArenas)]
    slots = [executor.join(sample_requests) for executor in executors]
    assert slots[0] == slots[1]
    for slot, request in zip(slots[0], sample_requests, strict=True):
        for step in range(request.num_steps[0] + 3):
            if step >= request.num_steps[0]:
                one, other = (executor.preview([slot])[slot] for executor in executors)
                assert np.array_equal(one, other)
            for executor in executors:
                executor.step([slot], 4)


def test_a_preview_shows_every_step_that_has_started(plans: ModelPlans) -> None:
    request = replace(requests(1)[0], num_steps=(1, 3))
    ahead, behind = Executor(plans, 1), Executor(plans, 1)
    (slot,) = ahead.join([request])
    assert behind.join([request]) == [slot]
    under_way = [ahead.start([slot]) for _ in range(3)]
    for _ in range(3):
        behind.step([slot])
    assert np.array_equal(ahead.preview([slot])[slot], behind.preview([slot])[slot])
    for rows in under_way:
        ahead.finish(rows)


def test_a_sample_that_is_not_finite_fails_alone(plans: ModelPlans) -> None:
    executor = Executor(plans, 4)
    driver = Driver(executor, 8, 0)
    sample_requests = requests(4)
    noise = SampleNoise.of(
        plans.config, [request.seed for request in sample_requests], [request.index for request in sample_requests]
    )
    noise.stages[0][2, 0, 0, 0] = np.nan
    slots = executor.join(sample_requests, noise)
    results = [executor.step(slots, 8), executor.step([slots[1]], 8)]
    assert [result.failed for result in results] == [(slots[2],), ()]
    assert executor.num_free_slots == 1
    images = driver.run([replace(sample_requests[2], seed=5)])
    (expected,) = generate(at_bucket(plans, 8), [replace(sample_requests[2], seed=5)])
    assert np.array_equal(images[replace(sample_requests[2], seed=5)], expected), "the slot is clean again"


def test_more_schedules_than_expected_are_kept(plans: ModelPlans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MIN_TABLE_ROWS", 4)
    sampling = plans.config.sampling.model_copy(update={"max_num_steps": 1})
    config = plans.config.model_copy(update={"sampling": sampling})
    sample_requests = [
        replace(request, num_steps=(1 + n, request.num_steps[1])) for n, request in enumerate(requests(9))
    ]
    images = Driver(Executor(replace(plans, config=config), 9), 8, 0).run(sample_requests)
    for request, image in zip(sample_requests, generate(at_bucket(plans, 8), sample_requests), strict=True):
        assert np.array_equal(images[request], image), request


def test_a_failure_of_the_device_is_a_plan_error(plans: ModelPlans, model: MsfModel) -> None:
    def broken(*inputs: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    networks = {stage: network_of(model, stage) for stage in TWO_STAGES}
    executor = Executor(with_networks(plans, networks | {Stage.BASE: broken}), 1)
    with pytest.raises(PlanError, match="the device cannot start a batch of base: CUDA error: an illegal memory"):
        executor.step(executor.join(requests(1)))


def test_arenas_are_where_the_plans_take_their_inputs(plans: ModelPlans, eager_plans: ModelPlans) -> None:
    assert isinstance(make_arenas(plans, 1), DeviceArenas)
    assert isinstance(
        make_arenas(replace(plans, by_stage={**plans.by_stage, Stage.BASE: eager_plans.by_stage[Stage.BASE]}), 1),
        HostArenas,
    )


class RefusingGraph:
    """In place of `torch.cuda.graph`, where a function uses an operation that cannot be captured."""

    def __init__(self, graph: object, *, error: type[RuntimeError], **options: object) -> None:
        self.error = error

    def __enter__(self) -> None:
        raise self.error("operation not permitted when stream is capturing")

    def __exit__(self, *args: object) -> None: ...


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_what_cannot_be_captured_runs_without_a_graph(
    error: type[RuntimeError], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: RefusingGraph(graph, error=error, **options))
    stream: Any = None

    def function() -> Tensor:
        return torch.ones(1)

    if error is torch.OutOfMemoryError:
        with pytest.raises(torch.OutOfMemoryError):
            cuda_graph.capture(function, stream, None, "stage base")
    else:
        assert cuda_graph.capture(function, stream, None, "stage base") is function
        assert "stage base runs without a CUDA graph: operation not permitted" in caplog.text


@pytest.fixture(scope="module", params=[("eager", "fp32"), ("eager", "bf16"), ("inductor", "bf16")], ids=" ".join)
def gpu_plans(
    version: ModelVersion, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> ModelPlans:
    name: BackendName
    precision: Precision
    name, precision = request.param
    buckets = (2, 4) if name == "inductor" else BUCKETS  # it compiles for each
    return load_plans(version, get_backend(name, precision, 1), PlanCache(tmp_path_factory.mktemp("plans")), buckets)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # inside torch
def test_on_a_gpu_every_batch_is_a_graph_and_agrees_with_the_plans(
    gpu_plans: ModelPlans, caplog: pytest.LogCaptureFixture
) -> None:
    sample_requests = requests(12)
    executor = Executor(gpu_plans, 5)
    assert "without a CUDA graph" not in caplog.text
    images = Driver(executor, 4, 0).run(sample_requests, leaving=0.1)
    differences = [
        np.abs(images[request].astype(int) - image.astype(int))
        for request, image in zip(sample_requests, generate(at_bucket(gpu_plans, 4), sample_requests), strict=True)
    ]
    assert max(difference.max() for difference in differences) <= 2


@needs_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_strict_buckets_keep_an_images_bytes(gpu_plans: ModelPlans) -> None:
    strict = set.intersection(*(set(gpu_plans.strict[stage]) for stage in TWO_STAGES)) - {1}
    if not strict:
        pytest.skip(f"no bucket is strict in every stage: {gpu_plans.strict}")
    sample_requests = requests(12)
    runs = [Driver(Executor(gpu_plans, 6), bucket, seed).run(sample_requests) for bucket in strict for seed in range(2)]
    for request in sample_requests:
        assert len({run[request].tobytes() for run in runs}) == 1, request


@needs_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_more_schedules_than_expected_are_kept(gpu_plans: ModelPlans, monkeypatch: pytest.MonkeyPatch) -> None:
    sample_requests = [
        replace(request, num_steps=(1 + n, request.num_steps[1])) for n, request in enumerate(requests(9))
    ]
    expected = Driver(Executor(gpu_plans, 9), 4, 0).run(sample_requests)
    monkeypatch.setattr(device, "MIN_TABLE_ROWS", 4)
    sampling = gpu_plans.config.sampling.model_copy(update={"max_num_steps": 1})
    config = gpu_plans.config.model_copy(update={"sampling": sampling})
    images = Driver(Executor(replace(gpu_plans, config=config), 9), 4, 0).run(sample_requests)
    assert all(np.array_equal(images[request], expected[request]) for request in sample_requests)


@needs_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_memory_is_given_back(gpu_plans: ModelPlans) -> None:
    def allocated() -> int:
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated()

    before = allocated()
    executor = Executor(gpu_plans, 256)
    executor.step(executor.join(requests(2)))
    assert torch.cuda.memory_allocated() > before
    del executor
    assert allocated() <= before
