"""A denoiser of msf-serve as a model of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from msf_engine.denoiser import Denoiser
from msf_engine.time_embedding import TimeInput


class MsfDenoiser(ModelMixin, ConfigMixin):
    """The network, told everything by name as in a model's config."""

    @register_to_config
    def __init__(self, denoiser: dict[str, Any], is_flow_map: bool = False) -> None:
        super().__init__()
        shape = {
            name: SimpleNamespace(**value) if isinstance(value, dict) else value for name, value in denoiser.items()
        }
        self.network = Denoiser(SimpleNamespace(**shape), is_flow_map=is_flow_map)

    def forward(
        self, x: Tensor, times: Mapping[TimeInput, Tensor], labels: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """Map x (B, C, h, w), times (B,) by name, labels (B,) and cond (B, K, h, w) to the prediction (B, C, h, w)."""
        names: tuple[TimeInput, ...] = ("timestep", "cond_level", "interval", "guidance_scale")
        inputs = (times[name] for name in names)
        prediction: Tensor = self.network(x, self.network.time(*inputs), labels, cond)
        return prediction
