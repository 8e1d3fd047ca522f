"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from msf_serve.engine import trials
from msf_serve.engine.backends import BackendName, Precision
from msf_serve.engine.denoiser import Denoiser
from msf_serve.engine.device import DTYPES, Device
from msf_serve.engine.plans import Plan, PlanSpec
from msf_serve.engine.stage import Stage
from msf_serve.engine.step import StepModule


class EagerBackend:
    """Compiles nothing, so there is nothing to keep. bf16 and fp16 are autocast: the decoder stays in float32."""

    name: BackendName = "eager"
    one_plan_for_all_buckets = False
    runs_here = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self.precision: Precision = precision or "fp32"
        self._device = Device(num_threads)
        # torch's default lets GPUs round the decoder's convolutions to TF32: for speed, but then it is no reference.
        torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self._graph_pool: Any = None
        self._low: WeakKeyDictionary[Denoiser, Denoiser] = WeakKeyDictionary()
        self.device = self._device.name

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.precision} torch {torch.__version__} {self._device.fingerprint}"

    def tolerance(self, stage: Stage) -> float:
        return trials.tolerance(stage, "fp32" if stage is Stage.DECODE else self.precision)

    def compile(self, spec: PlanSpec, module: nn.Module) -> bytes:
        return b""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        (bucket,) = spec.buckets
        precision = "fp32" if spec.stage is Stage.DECODE else self.precision
        module = self._placed(source(), precision)
        return self._device.plan(self._prepared(module), precision, spec.example(bucket), self._graph_pool)

    def _prepared(self, module: nn.Module) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        return module

    def _placed(self, module: nn.Module, precision: Precision) -> nn.Module:
        """The module on the device; in low precision a copy, of which plans of the same denoiser share the weights."""
        if precision == "fp32" or not isinstance(module, StepModule):
            return module.to(self._device.torch)
        if module.denoiser not in self._low:
            self._low[module.denoiser] = _with_cast_linears(module.denoiser, DTYPES[precision], self._device.torch)
        return StepModule(self._low[module.denoiser], guided=module.guided).eval()


def _with_cast_linears(denoiser: Denoiser, dtype: torch.dtype, device: torch.device) -> Denoiser:
    """A copy for autocast: the same answers to the byte, but the weights are not cast again at every step."""
    tensors: dict[int, Tensor] = {id(buffer): buffer.to(device) for buffer in denoiser.buffers()}
    for module in denoiser.modules():
        for parameter in module.parameters(recurse=False):
            cast = parameter.to(device, dtype if isinstance(module, nn.Linear) else None)
            tensors[id(parameter)] = nn.Parameter(cast, requires_grad=False)
    return copy.deepcopy(denoiser, tensors)  # what it finds there it does not copy


BACKEND = EagerBackend
