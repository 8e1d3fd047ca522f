"""Backends to compare: the product's, and the network cast as a whole to low precision, as is common practice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from msf_engine.backends import Backend, BackendName, Precision, get_backend
from msf_engine.backends.eager import EagerBackend
from msf_engine.backends.inductor import InductorBackend
from msf_engine.denoiser import Denoiser
from msf_engine.device_plan import DevicePlan
from msf_engine.plan import Plan, PlanSpec
from msf_engine.precision import DTYPES

MethodName = BackendName | Literal["eager-cast", "inductor-cast"]


class DeviceEager(EagerBackend):
    """Eager plans that take tensors on the device also where that is the CPU, to test what is written for a GPU."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        return DevicePlan(spec, self._compiled(self._placed(source())), self.torch_device)


class CastEager(DeviceEager):
    """`denoiser.to(dtype)`: less exact than the product's eager backend, and the minimum that eager mode has to do."""

    def _placed(self, network: nn.Module) -> nn.Module:
        if isinstance(network, Denoiser):
            network = _CastDenoiser(network, DTYPES[self.precision])
        return network.eval().to(self.torch_device)


class CastInductor(CastEager, InductorBackend):
    """The same, compiled."""


class _CastDenoiser(nn.Module):
    """Copy of a denoiser in low precision, tokens between blocks included, with float32 inputs and outputs."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).to(dtype)
        self.dtype = dtype

    def forward(self, x: Tensor, time_embedding: Tensor, labels: Tensor, cond: Tensor | None = None) -> Tensor:
        latents = [x.to(self.dtype), time_embedding.to(self.dtype)]
        velocity: Tensor = self.denoiser(*latents, labels, None if cond is None else cond.to(self.dtype))
        return velocity.float()


def get_method(name: MethodName, precision: Precision | None, num_threads: int) -> Backend:
    """Return a backend of the product, or of the whole network cast."""
    if name == "eager":
        return DeviceEager(precision, num_threads)
    if name == "eager-cast":
        return CastEager(precision, num_threads)
    if name == "inductor-cast":
        return CastInductor(precision, num_threads)
    return get_backend(name, precision, num_threads)
