"""Plans of networks that take tensors on a device: arenas there call the network itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from msf_engine.plan import Array, FunctionPlan, PlanSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class DevicePlan(FunctionPlan):
    """A plan over a function of tensors on `device`: as a plan it takes and returns arrays, which validation needs."""

    def __init__(self, spec: PlanSpec, network: Callable[..., Tensor], device: torch.device) -> None:
        super().__init__(spec, self._call)
        self.network = network
        self.device = device

    def _call(self, *inputs: Array) -> Array:
        import torch  # not above: a worker without a GPU has no use for it

        with torch.inference_mode():
            output = self.network(*(torch.from_numpy(array).to(self.device) for array in inputs))
        return output.cpu().numpy()
