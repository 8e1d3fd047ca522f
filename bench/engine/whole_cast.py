"""Low precision by casting the whole network, including the tokens between blocks: the common practice."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from msf_engine.denoiser import Denoiser
from msf_engine.guided_step import StepModule


def whole_cast(step: StepModule, dtype: torch.dtype) -> StepModule:
    """Return a copy of a step whose denoiser is cast as a whole."""
    cast = StepModule(step.denoiser, guided=step.guided)
    cast.denoiser = _CastDenoiser(copy.deepcopy(step.denoiser).to(dtype), dtype)  # type: ignore[assignment]  # called like one
    return cast.eval()


class _CastDenoiser(nn.Module):
    """Denoiser in low precision with float32 inputs and outputs."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.null_label = denoiser.null_label
        self.dtype = dtype

    def forward(self, x: Tensor, time_embedding: Tensor, labels: Tensor, cond: Tensor) -> Tensor:
        velocity: Tensor = self.denoiser(x.to(self.dtype), time_embedding.to(self.dtype), labels, cond.to(self.dtype))
        return velocity.float()
