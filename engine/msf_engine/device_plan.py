"""Plans of networks on a GPU: arrays in and out for validation; arenas there call the network itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msf_engine.plan import Array, FunctionPlan, PlanSpec


class DevicePlan(FunctionPlan):
    """A plan over a function of tensors on `device`."""

    def __init__(self, spec: PlanSpec, network: Callable[..., Tensor], device: torch.device) -> None:
        super().__init__(spec, self._call)
        self.network = network
        self.device = device

    def _call(self, *inputs: Array) -> Array:
        with torch.inference_mode():
            return self.network(*(torch.from_numpy(array).to(self.device) for array in inputs)).cpu().numpy()
