"""The reference backend: the modules as they are, in torch's eager mode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from msf_serve.engine.backends import Plan, Precision
from msf_serve.engine.plans import PlanCache, PlanSpec


class EagerBackend:
    """Compiles nothing, so its plans are not cached and take any batch."""

    name = "eager"

    def __init__(self, precision: Precision, num_threads: int) -> None:
        self.precision = precision
        torch.set_num_threads(num_threads)

    @property
    def fingerprint(self) -> str:
        return f"eager {self.precision} torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"

    def plan(self, spec: PlanSpec, source: Callable[[], nn.Module], cache: PlanCache) -> Plan:
        module = source()

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            with (
                torch.inference_mode(),
                torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"),
            ):
                outputs = module(*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return run
