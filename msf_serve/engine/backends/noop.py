"""The backend that computes nothing, to measure what surrounds the device: queue, transport, encoding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msf_serve.engine.backends import Plan
from msf_serve.engine.plans import PlanCache, PlanSpec


class NoopBackend:
    """Its plans answer at once with what the module says of zeros; its images are all alike and worthless."""

    name = "noop"
    fingerprint = "noop"

    def plan(self, spec: PlanSpec, source: Callable[[], nn.Module], cache: PlanCache) -> Plan:
        with torch.inference_mode():
            outputs = source()(*spec.example(spec.bucket))
        answer: tuple[Tensor, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
        return lambda *_: answer
