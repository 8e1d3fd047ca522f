"""Backends to compare: the product's, and the network cast as a whole to low precision, as is common practice."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from msf_engine.guided_step import StepModule
from torch import Tensor, nn

from msf_engine.backends import Backend, BackendName, Precision, get_backend
from msf_engine.backends.eager import EagerBackend
from msf_engine.backends.inductor import InductorBackend
from msf_engine.denoiser import Denoiser
from msf_engine.precision import DTYPES

MethodName = BackendName | Literal["eager-cast", "inductor-cast"]


class CastEager(EagerBackend):
    """`denoiser.to(dtype)`: less exact than the product's eager backend, and the minimum that eager mode has to do."""

    def _placed(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, StepModule)
        step = StepModule(module.denoiser, guided=module.guided)
        step.denoiser = _CastDenoiser(module.denoiser, DTYPES[self.precision])  # type: ignore[assignment]  # called alike
        return step.eval().to(self.torch_device)


class CastInductor(CastEager, InductorBackend):
    """The same, compiled."""


class _CastDenoiser(nn.Module):
    """Copy of a denoiser in low precision, tokens between blocks included, with float32 inputs and outputs."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).to(dtype)
        self.null_label = denoiser.null_label
        self.dtype = dtype

    def forward(self, x: Tensor, time_embedding: Tensor, labels: Tensor, cond: Tensor) -> Tensor:
        velocity: Tensor = self.denoiser(x.to(self.dtype), time_embedding.to(self.dtype), labels, cond.to(self.dtype))
        return velocity.float()


def get_method(name: MethodName, precision: Precision | None, num_threads: int) -> Backend:
    """Return a backend of the product, or of the whole network cast."""
    if name == "eager-cast":
        return CastEager(precision, num_threads)
    if name == "inductor-cast":
        return CastInductor(precision, num_threads)
    return get_backend(name, precision, num_threads)
