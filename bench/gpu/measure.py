"""Measurement of the GPU benchmark's cells: time, error, memory and strictness of a step."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from msf_engine.guided_step import StepModule
from torch import Tensor, nn

from bench.engine.flops import step_flops
from bench.engine.sizes import NUM_CLASSES, random_denoiser
from bench.gpu.cells import NUM_STEPS, VARIES, CellResult, GpuCell, GpuNetwork, StageTimes
from msf_engine import plan_validation as validation
from msf_engine.backends import Backend
from msf_engine.plan import Plan, PlanSpec, step_inputs
from msf_scheduler.stage import Stage

NUM_WARMUP = 3
NUM_SWEEP_CALLS = 4 * validation.NUM_SAMPLES


@dataclass(frozen=True)
class Effort:
    """Duration of a measurement: at least `min_repeats` steps, then until `seconds` have passed or `max_repeats`.

    The strict sweep is skipped if it would take longer than `sweep_s`.
    """

    min_repeats: int = 10
    max_repeats: int = 200
    seconds: float = 1.5
    sweep_s: float = 10.0


class BenchModel:
    """Denoisers with random weights, probes for them, and their outputs in float32."""

    def __init__(self, network: GpuNetwork, device: torch.device) -> None:
        self.network = network
        self.probes: dict[Stage, validation.ValidationInputs] = {}
        self.references: dict[Stage, validation.EagerReference] = {}
        self._modules: dict[Stage, StepModule] = {}
        for stage, size in network.denoisers().items():
            with device:
                module = StepModule(random_denoiser(size), guided=True).eval()
            time_embedding = copy.deepcopy(module.denoiser.time).cpu()
            self.probes[stage] = validation.make_validation_inputs(
                stage, step_inputs(size), NUM_CLASSES, time_embedding
            )
            self.references[stage] = validation.EagerReference.of(stage, module, self.probes[stage])
            self._modules[stage] = module

    def module(self, stage: Stage) -> nn.Module:
        """Return the module on the host; the last plan may have moved it."""
        return self._modules[stage].cpu()


class GpuBench:
    """Measures cells; holds one network and one backend's plans at a time."""

    def __init__(self, device: torch.device, peak_flops: float, hardware: str, effort: Effort) -> None:
        self.device = device
        self.peak_flops = peak_flops
        self.hardware = hardware
        self.effort = effort
        self._model: BenchModel | None = None
        self._plans: tuple[object, dict[Stage, Plan]] = None, {}

    def measure(self, cell: GpuCell, backend: Backend) -> CellResult:
        """Return the cell's result; an exception becomes its `failure`."""
        started_at = time.monotonic()
        try:
            values = self._measure(cell, backend)
        except Exception as error:
            self._drop_plans()
            values = {"failure": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        cell_s = time.monotonic() - started_at
        key = cell.network, cell.backend, cell.precision, cell.bucket
        return CellResult(*key, self.hardware, backend.fingerprint, cell_s, **values)

    def is_device_usable(self) -> bool:
        """Tell whether the GPU still works in this process; some errors end that."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _measure(self, cell: GpuCell, backend: Backend) -> dict[str, Any]:
        model = self._load_model(cell.network)
        plans, compile_s = self._load_plans(cell, backend, model)
        first_call_at = time.monotonic()
        for stage, plan in plans.items():
            plan(*model.probes[stage].rows(_probe_numbers(cell.bucket)))
        compile_s += time.monotonic() - first_call_at  # some backends compile on the first call
        stages = {stage: self._measure_stage(plan, model, stage, cell.bucket) for stage, plan in plans.items()}
        num_steps, sizes = NUM_STEPS[cell.network.kind], cell.network.denoisers()
        batch_s = sum(num_steps[stage] * stages[stage].ms / 1e3 for stage in num_steps)
        flops = cell.bucket * sum(num_steps[stage] * step_flops(sizes[stage]) for stage in num_steps)
        return {
            "stages": stages,
            "images_per_s": cell.bucket / batch_s,
            "of_peak": flops / batch_s / self.peak_flops,
            "memory_mb": self._memory_mb(),
            "tolerance": backend.tolerance(Stage.BASE),
            "compile_s": compile_s,
        }

    def _measure_stage(self, plan: Plan, model: BenchModel, stage: Stage, bucket: int) -> StageTimes:
        probes, numbers = model.probes[stage], _probe_numbers(bucket)
        inputs = probes.rows(numbers)
        outputs = plan(*inputs)
        wall_ms = _repeat(lambda: plan(*inputs), self.effort)
        median_ms, p99_ms = (float(value) for value in np.percentile(wall_ms, (50, 99)))
        error = model.references[stage].error(outputs, numbers)
        digest: str | None = ""
        if median_ms * NUM_SWEEP_CALLS <= 1e3 * self.effort.sweep_s:
            digest = validation.sweep(plan, probes, bucket, validation.SHORT, 1)
        device_ms = _device_ms(plan, inputs, self.effort)
        return StageTimes(median_ms, p99_ms, device_ms, error, VARIES if digest is None else digest)

    def _load_model(self, network: GpuNetwork) -> BenchModel:
        if self._model is None or self._model.network != network:
            self._model = None
            self._drop_plans()
            self._model = BenchModel(network, self.device)
        return self._model

    def _load_plans(self, cell: GpuCell, backend: Backend, model: BenchModel) -> tuple[dict[Stage, Plan], float]:
        """Return the cell's plans, and the seconds to compile them if they are new."""
        buckets = cell.buckets if backend.one_plan_for_all_buckets else (cell.bucket,)
        key = cell.network, cell.backend, cell.precision, buckets
        if self._plans[0] == key:
            return self._plans[1], 0.0
        self._drop_plans()
        started_at = time.monotonic()
        plans = {}
        for stage, size in cell.network.denoisers().items():
            spec = PlanSpec(str(cell.network), "random weights", stage, True, buckets, step_inputs(size))
            plans[stage] = backend.load(spec, backend.compile(spec, model.module(stage)), partial(model.module, stage))
        self._plans = key, plans
        return plans, time.monotonic() - started_at

    def _drop_plans(self) -> None:
        self._plans = None, {}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory_mb(self) -> float | None:
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info()  # includes TensorRT's allocations; torch keeps what it once had
        return (total - free) / 1e6


def _probe_numbers(bucket: int) -> list[int]:
    return [slot % validation.NUM_SAMPLES for slot in range(bucket)]


def _repeat(call: Callable[[], object], effort: Effort) -> list[float]:
    """Return the milliseconds of each call, after a warm-up."""
    for _ in range(NUM_WARMUP):
        call()
    times_ms: list[float] = []
    while len(times_ms) < effort.min_repeats or (
        sum(times_ms) < 1e3 * effort.seconds and len(times_ms) < effort.max_repeats
    ):
        started_at = time.perf_counter()
        call()
        times_ms.append(1e3 * (time.perf_counter() - started_at))
    return times_ms


def _device_ms(plan: Plan, inputs: tuple[Tensor, ...], effort: Effort) -> float | None:
    """Return the median milliseconds of a plan's work on the GPU alone; None without a GPU."""
    device_ms: Callable[..., float] | None = getattr(plan, "device_ms", None)
    if device_ms is None:
        return None
    return float(np.median([device_ms(*inputs) for _ in range(effort.min_repeats)]))
