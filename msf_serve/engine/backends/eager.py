"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from msf_serve.engine import trials
from msf_serve.engine.backends import BackendName, Precision
from msf_serve.engine.device import Device
from msf_serve.engine.plans import Plan, PlanSpec
from msf_serve.engine.stage import Stage


class EagerBackend:
    """Compiles nothing, so there is nothing to keep. bf16 and fp16 are autocast: the decoder stays in float32."""

    name: BackendName = "eager"
    one_plan_for_all_buckets = False
    runs_here = True

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        self.precision: Precision = precision or "fp32"
        self._device = Device(num_threads)
        self._graph_pool: Any = None
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
        module = source().to(self._device.torch)
        return self._device.plan(self._prepared(module), precision, spec.example(bucket), self._graph_pool)

    def _prepared(self, module: nn.Module) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        return module


BACKEND = EagerBackend
