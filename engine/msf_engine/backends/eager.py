"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, describe_options
from msf_engine.cuda_plan import CudaPlan
from msf_engine.denoiser import Denoiser
from msf_engine.device import cpu_fingerprint, cpu_name, gpu_fingerprint
from msf_engine.guided_step import StepModule
from msf_engine.plan import Plan, PlanSpec
from msf_engine.precision import DTYPES, low_denoiser
from msf_scheduler.stage import Stage


class EagerBackend:
    """Runs on the first NVIDIA GPU if there is one, else on the CPU. It compiles nothing, so nothing is cached.

    The decoder is in float32 with any precision.
    """

    name: BackendName = "eager"
    one_plan_for_all_buckets = False
    runs_here = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.precision: Precision = precision or "fp32"
        self.on_gpu = torch.cuda.is_available()
        self.torch_device = torch.device("cuda" if self.on_gpu else "cpu")
        self.device = torch.cuda.get_device_name() if self.on_gpu else cpu_name()
        self.options: dict[str, object] = {}
        if self.on_gpu:
            # Torch rounds the decoder's convolutions to TF32 by default: fast, but not a reference.
            self.options["tf32"] = torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self._num_threads = num_threads
        self._graph_pool: Any = None
        self._low: WeakKeyDictionary[Denoiser, Denoiser] = WeakKeyDictionary()

    @property
    def fingerprint(self) -> str:
        device = gpu_fingerprint() if self.on_gpu else cpu_fingerprint(self._num_threads)
        options = describe_options(self.options)
        return " ".join(filter(None, (self.name, self.precision, f"torch {torch.__version__}", device, options)))

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, "fp32" if stage is Stage.DECODE else self.precision)

    def compile(self, spec: PlanSpec, module: nn.Module) -> bytes:
        return b""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        (bucket,) = spec.buckets
        function = self._compiled(self._placed(source()))

        def compute(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                outputs = function(*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return CudaPlan(compute, spec.example(bucket), self._graph_pool) if self.on_gpu else compute

    def _compiled(self, module: nn.Module) -> nn.Module:
        return module

    def _placed(self, module: nn.Module) -> nn.Module:
        """Move the module to the device; in low precision a copy, whose weights the plans of a denoiser share."""
        if self.precision == "fp32" or not isinstance(module, StepModule):
            return module.to(self.torch_device)
        if module.denoiser not in self._low:
            self._low[module.denoiser] = low_denoiser(module.denoiser, DTYPES[self.precision], self.torch_device)
        return StepModule(self._low[module.denoiser], guided=module.guided).eval()


BACKEND = EagerBackend
