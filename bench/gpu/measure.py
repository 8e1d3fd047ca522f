"""Measures one cell of `bench.gpu` after the other."""

from __future__ import annotations

import copy
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from bench.engine.flops import step_flops
from bench.engine.sizes import NUM_CLASSES, random_denoiser
from bench.gpu.cells import NUM_STEPS, VARIES, Cell, Network, Row
from msf_engine import plan_validation as trials
from msf_engine.backends import Backend
from msf_engine.guided_step import StepModule
from msf_engine.plan import Plan, PlanSpec, step_inputs
from msf_scheduler.stage import Stage

WARM_UPS = 3
NUM_SWEEP_CALLS = 4 * trials.NUM_PROBES


@dataclass(frozen=True)
class Effort:
    """How long a step is measured: at least `min_repeats` times, then until `seconds` have passed or `max_repeats`.

    The strict sweep is left out where it would take longer than `sweep_s`.
    """

    min_repeats: int = 10
    max_repeats: int = 200
    seconds: float = 1.5
    sweep_s: float = 10.0


@dataclass(frozen=True)
class StageResult:
    ms: float
    p99_ms: float
    device_ms: float | None
    error: float
    row: str | None  # None: it depends on the batch; "": not tried


class Bench:
    """Holds one network and one backend's plans at a time."""

    def __init__(self, device: torch.device, peak_flops: float, hardware: str, effort: Effort) -> None:
        self.device = device
        self.peak_flops = peak_flops
        self.hardware = hardware
        self.effort = effort
        self._model: Model | None = None
        self._plans: tuple[object, dict[Stage, Plan]] = None, {}

    def measure(self, cell: Cell, backend: Backend) -> Row:
        """The cell's row; whatever is raised becomes its `error`."""
        started_at = time.monotonic()
        try:
            row = self._measure(cell, backend)
        except Exception as error:
            self._forget_plans()
            row = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        return Row.of(
            cell,
            **row,
            cell_s=f"{time.monotonic() - started_at:.1f}",
            hardware=self.hardware,
            fingerprint=backend.fingerprint,
        )

    def is_device_usable(self) -> bool:
        """Some errors end a process's use of a GPU."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True

    def _measure(self, cell: Cell, backend: Backend) -> dict[str, str]:
        model = self._model_of(cell.network)
        plans, compile_s = self._plans_of(cell, backend, model)
        first_call = time.monotonic()
        for stage, plan in plans.items():
            plan(*model.probes[stage].rows(_slots(cell.bucket)))
        compile_s += time.monotonic() - first_call  # some compile when they first run
        tolerance = backend.tolerance(Stage.BASE)
        results = {stage: self._try(plan, model, stage, cell.bucket) for stage, plan in plans.items()}
        seconds = {stage: result.ms / 1e3 for stage, result in results.items()}
        steps = NUM_STEPS[cell.network.kind]
        per_batch = sum(steps[stage] * seconds[stage] for stage in steps)
        sizes = cell.network.denoisers()
        flops = cell.bucket * sum(steps[stage] * step_flops(sizes[stage]) for stage in steps) / per_batch
        row = {
            "images_per_s": f"{cell.bucket / per_batch:.4g}",
            "tflops": f"{flops / 1e12:.4g}",
            "peak_tflops": f"{self.peak_flops / 1e12:.4g}",
            "of_peak": f"{flops / self.peak_flops:.4f}",
            "memory_mb": self._memory_mb(),
            "tolerance": f"{tolerance:g}",
            "compile_s": f"{compile_s:.1f}",
        }
        for stage, result in results.items():
            row |= {
                f"{stage}_ms": f"{result.ms:.4g}",
                f"{stage}_p99_ms": f"{result.p99_ms:.4g}",
                f"{stage}_device_ms": "" if result.device_ms is None else f"{result.device_ms:.4g}",
                f"{stage}_error": f"{result.error:.3g}",
                f"{stage}_row": VARIES if result.row is None else result.row[:16],
            }
        return row

    def _try(self, plan: Plan, model: Model, stage: Stage, bucket: int) -> StageResult:
        probes, numbers = model.probes[stage], _slots(bucket)
        inputs = probes.rows(numbers)
        outputs = plan(*inputs)
        wall = _repeat(lambda: plan(*inputs), self.effort)
        ms = statistics.median(wall)
        error = model.references[stage].error(outputs, numbers)
        row: str | None = ""
        if ms * NUM_SWEEP_CALLS <= 1e3 * self.effort.sweep_s:
            row = trials.sweep(plan, probes, bucket, trials.SHORT, 1)
        return StageResult(ms, _percentile(wall, 0.99), _device_ms(plan, inputs, self.effort), error, row)

    def _model_of(self, network: Network) -> Model:
        if self._model is None or self._model.network != network:
            self._forget_plans()
            self._model = None
            self._free()
            self._model = Model(network, self.device)
        return self._model

    def _plans_of(self, cell: Cell, backend: Backend, model: Model) -> tuple[dict[Stage, Plan], float]:
        """The cell's plans, and the seconds that they took if they are new."""
        buckets = cell.buckets if backend.one_plan_for_all_buckets else (cell.bucket,)
        name = cell.network, cell.backend, cell.precision, buckets
        if self._plans[0] == name:
            return self._plans[1], 0.0
        self._forget_plans()
        started_at = time.monotonic()
        plans = {}
        for stage, size in cell.network.denoisers().items():
            module = model.module(stage)
            inputs = step_inputs(size)
            spec = PlanSpec(str(cell.network), "random weights", stage, True, buckets, inputs)
            plans[stage] = backend.load(spec, backend.compile(spec, module), partial(model.module, stage))
        self._plans = name, plans
        return plans, time.monotonic() - started_at

    def _forget_plans(self) -> None:
        self._plans = None, {}
        self._free()

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory_mb(self) -> str:
        if self.device.type != "cuda":
            return ""
        free, total = torch.cuda.mem_get_info()  # TensorRT allocates beside torch; torch keeps what it once had
        return f"{(total - free) / 1e6:.0f}"


class Model:
    """A network's denoisers with random weights, and what they answer in float32."""

    def __init__(self, network: Network, device: torch.device) -> None:
        self.network = network
        self.probes: dict[Stage, trials.Probes] = {}
        self.references: dict[Stage, trials.Reference] = {}
        self._modules: dict[Stage, StepModule] = {}
        for stage, size in network.denoisers().items():
            with device:
                module = StepModule(random_denoiser(size), guided=True).eval()
            inputs = step_inputs(size)
            time_embedding = copy.deepcopy(module.denoiser.time).cpu()
            self.probes[stage] = trials.make_probes(stage, inputs, NUM_CLASSES, time_embedding)
            self.references[stage] = trials.Reference.of(stage, module, self.probes[stage])
            self._modules[stage] = module

    def module(self, stage: Stage) -> nn.Module:
        """On the host, wherever the last plan of it has moved it."""
        return self._modules[stage].cpu()


def _slots(bucket: int) -> list[int]:
    return [slot % trials.NUM_PROBES for slot in range(bucket)]


def _repeat(call: Callable[[], object], effort: Effort) -> list[float]:
    """Milliseconds of each call, after a warm-up."""
    for _ in range(WARM_UPS):
        call()
    found: list[float] = []
    while len(found) < effort.min_repeats or (sum(found) < 1e3 * effort.seconds and len(found) < effort.max_repeats):
        started_at = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - started_at))
    return found


def _device_ms(plan: Plan, inputs: tuple[Tensor, ...], effort: Effort) -> float | None:
    """Median milliseconds of a plan's work on the GPU alone; None where there is none."""
    device_ms: Callable[..., float] | None = getattr(plan, "device_ms", None)
    if device_ms is None:
        return None
    return statistics.median(device_ms(*inputs) for _ in range(effort.min_repeats))


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[ceil(share * len(values)) - 1]
