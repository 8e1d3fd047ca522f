"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from msf_engine import plan_validation
from msf_engine.backends import BackendName, Precision, describe_options
from msf_engine.denoiser import Denoiser
from msf_engine.device import Device
from msf_engine.guided_step import StepModule
from msf_engine.plan import Plan, PlanSpec
from msf_engine.precision import DTYPES, low_denoiser
from msf_scheduler.stage import Stage


class EagerBackend:
    """Compiles nothing, so there is nothing to keep. The decoder is in float32 with any precision."""

    name: BackendName = "eager"
    one_plan_for_all_buckets = False
    runs_here = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self.precision: Precision = precision or "fp32"
        self._device = Device(num_threads)
        if self._device.torch.type == "cuda":
            # torch's default rounds the decoder's convolutions to TF32: for speed, but then it is no reference.
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        self._graph_pool: Any = None
        self._low: WeakKeyDictionary[Denoiser, Denoiser] = WeakKeyDictionary()
        self.device = self._device.name

    @property
    def fingerprint(self) -> str:
        options = {"tf32": self._device.torch.type == "cuda" and self.precision != "fp32"}
        return (
            f"{self.name} {self.precision} torch {torch.__version__} {self._device.fingerprint} "
            f"{describe_options(options)}"
        )

    def tolerance(self, stage: Stage) -> float:
        return plan_validation.tolerance(stage, "fp32" if stage is Stage.DECODE else self.precision)

    def compile(self, spec: PlanSpec, module: nn.Module) -> bytes:
        return b""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        (bucket,) = spec.buckets
        return self._device.plan(self._prepared(self._placed(source())), spec.example(bucket), self._graph_pool)

    def _prepared(self, module: nn.Module) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        return module

    def _placed(self, module: nn.Module) -> nn.Module:
        """The module on the device; in low precision a copy, of which plans of the same denoiser share the weights."""
        if self.precision == "fp32" or not isinstance(module, StepModule):
            return module.to(self._device.torch)
        if module.denoiser not in self._low:
            self._low[module.denoiser] = low_denoiser(module.denoiser, DTYPES[self.precision], self._device.torch)
        return StepModule(self._low[module.denoiser], guided=module.guided).eval()


BACKEND = EagerBackend
