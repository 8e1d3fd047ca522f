"""Measurement of the GPU benchmark's cells: networks, whole steps and the engine's loop; error, memory, strictness."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.engine.flops import row_flops
from bench.gpu.cells import NUM_STEPS, VARIES, CellResult, GpuCell, LoopResult, StageTimes
from bench.gpu.loops import EngineLoop, images_per_s, plain_images
from bench.gpu.networks import BenchNetworks, BenchPlans, buckets_of
from msf_engine import plan_validation as validation
from msf_engine.arenas.device import DeviceArenas
from msf_engine.backends import Backend
from msf_engine.cuda_graph import capture
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import run
from msf_scheduler.stage import Stage

NUM_ESTIMATES = 3  # runs that tell how many fill the time
PLAIN_BACKENDS = ("eager", "eager-cast")


@dataclass(frozen=True)
class Effort:
    """Duration of a measurement, and of a loop; the strict sweep is skipped if it would take longer than `sweep_s`."""

    seconds: float = 0.5
    loop_s: float = 2.0
    sweep_s: float = 5.0


class GpuBench:
    """Measures cells; holds one network and one backend's plans at a time."""

    def __init__(self, device: torch.device, peak_flops: float, hardware: str, effort: Effort) -> None:
        self.device = device
        self.peak_flops = peak_flops
        self.hardware = hardware
        self.effort = effort
        self._networks: BenchNetworks | None = None
        self._plans: tuple[object, BenchPlans | None] = None, None

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
        plans, compile_s = self._load_plans(cell, backend)
        started_at = time.monotonic()
        for stage, plan in plans.by_stage.items():
            run(plan, plans.networks.inputs[stage].rows(_samples(_bucket(stage, cell))))
        compile_s += time.monotonic() - started_at  # some backends compile on the first call
        model, num_samples = plans.at(cell.bucket), cell.bucket // 2
        arenas = None if model is None else DeviceArenas(model, 2 * num_samples)
        stages = {stage: self._measure_stage(cell, plans, stage, arenas) for stage in plans.by_stage}
        num_steps, sizes = NUM_STEPS[cell.network.kind], cell.network.denoisers()
        denoising_s = sum(num_steps[stage] * stages[stage].network_ms / 1e3 for stage in num_steps)
        flops = cell.bucket * sum(num_steps[stage] * row_flops(sizes[stage]) for stage in num_steps)
        values: dict[str, Any] = {
            "stages": stages,
            "denoised_per_s": num_samples / denoising_s,
            "of_peak": flops / denoising_s / self.peak_flops,
            "tolerances": {stage: backend.tolerance(stage) for stage in stages},
            "compile_s": compile_s,
        }
        if model is not None and arenas is not None:
            num_decodes = -(-num_samples // _bucket(Stage.DECODE, cell))
            networks_s = denoising_s + num_decodes * stages[Stage.DECODE].network_ms / 1e3
            values["networks_per_s"] = num_samples / networks_s
            values["loop"] = self._measure_loop(model, arenas, cell.bucket, stages)
            if cell.backend in PLAIN_BACKENDS:
                make_images = partial(plain_images, model, plans.network, self.device, num_samples)
                values["plain_per_s"] = images_per_s(make_images, self.effort.loop_s)
        return values | {"memory_mb": self._memory_mb()}

    def _measure_stage(self, cell: GpuCell, plans: BenchPlans, stage: Stage, arenas: DeviceArenas | None) -> StageTimes:
        plan, networks, bucket = plans.by_stage[stage], plans.networks, _bucket(stage, cell)
        inputs, samples = networks.inputs[stage], _samples(bucket)
        error = networks.references[stage].error(run(plan, inputs.rows(samples)), samples)
        network_ms = self._network_ms(plans, stage, bucket)
        step_ms = None if arenas is None else self._device_ms(partial(arenas.run_scratch, stage, bucket), arenas.stream)
        digest: str | None = ""
        if network_ms * 4 * validation.NUM_SAMPLES <= 1e3 * self.effort.sweep_s:
            digest = validation.sweep(plan, inputs, bucket, validation.SHORT).row_digest
        return StageTimes(network_ms, step_ms, error, VARIES if digest is None else digest)

    def _measure_loop(
        self, model: ModelPlans, arenas: DeviceArenas, num_rows: int, stages: dict[Stage, StageTimes]
    ) -> LoopResult:
        loop = EngineLoop(Executor(model, num_rows, arenas), num_rows // 2, num_rows)
        seconds = loop.run(self.effort.loop_s)
        device_s = sum(count * (stages[stage].step_ms or 0.0) / 1e3 for (stage, _), count in loop.num_batches.items())
        return LoopResult(loop.num_images / seconds, device_s / seconds)

    def _network_ms(self, plans: BenchPlans, stage: Stage, bucket: int) -> float:
        """Return the milliseconds of a network alone, on a GPU as a CUDA graph."""
        with torch.inference_mode():
            arrays = plans.networks.inputs[stage].rows(_samples(bucket))
            compute: Callable[[], Tensor] = partial(
                plans.network(stage), *(torch.from_numpy(array).to(self.device) for array in arrays)
            )
            stream = None
            if self.device.type == "cuda":
                torch.cuda.synchronize()
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                compute = capture(compute, stream, torch.cuda.graph_pool_handle(), f"{stage} in batches of {bucket}")

        def repeat(num_runs: int) -> None:
            with torch.inference_mode(), torch.cuda.stream(stream):
                for _ in range(num_runs):
                    compute()

        return self._device_ms(repeat, stream)

    def _device_ms(self, repeat: Callable[[int], None], stream: torch.cuda.Stream | None) -> float:
        """Return the milliseconds of one of many runs that follow each other without a pause."""
        estimate_s = _timed(repeat, NUM_ESTIMATES, stream) / NUM_ESTIMATES
        num_runs = max(int(self.effort.seconds / max(estimate_s, 1e-6)), NUM_ESTIMATES)
        return 1e3 * _timed(repeat, num_runs, stream) / num_runs

    def _load_plans(self, cell: GpuCell, backend: Backend) -> tuple[BenchPlans, float]:
        """Return the cell's plans, and the seconds to compile them if they are new."""
        if self._networks is None or self._networks.network != cell.network:
            self._networks = None
            self._drop_plans()
            self._networks = BenchNetworks(cell.network, self.device)
        key = cell.network, cell.backend, cell.precision, cell.buckets
        if self._plans[0] == key and self._plans[1] is not None:
            return self._plans[1], 0.0
        self._drop_plans()
        started_at = time.monotonic()
        plans = BenchPlans(self._networks, backend, cell.buckets)
        self._plans = key, plans
        return plans, time.monotonic() - started_at

    def _drop_plans(self) -> None:
        self._plans = None, None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _memory_mb(self) -> float | None:
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info()  # includes TensorRT's allocations; torch keeps what it once had
        return (total - free) / 1e6


def _bucket(stage: Stage, cell: GpuCell) -> int:
    (bucket,) = buckets_of(stage, (cell.bucket,))
    return bucket


def _samples(bucket: int) -> list[int]:
    return [row % validation.NUM_SAMPLES for row in range(bucket)]


def _timed(repeat: Callable[[int], None], num_runs: int, stream: torch.cuda.Stream | None) -> float:
    if stream is None:
        started_at = time.perf_counter()
        repeat(num_runs)
        return time.perf_counter() - started_at
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record(stream)
    repeat(num_runs)
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
