"""Backends of the GPU benchmark: the product's, and the network cast as a whole, as is common practice."""

from __future__ import annotations

import sys

import torch
from torch import nn

from bench.engine.whole_cast import whole_cast
from bench.gpu.cells import GpuMethod
from msf_engine.backends import Backend, Precision, get_backend
from msf_engine.backends.eager import EagerBackend
from msf_engine.backends.inductor import InductorBackend
from msf_engine.guided_step import StepModule
from msf_engine.precision import DTYPES


class CastEager(EagerBackend):
    """`module.to(dtype)`: less exact than the product's eager backend, and the minimum that eager mode has to do."""

    def _placed(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, StepModule)
        return whole_cast(module, DTYPES[self.precision]).to(self._device.torch)


class CastInductor(CastEager, InductorBackend):
    """The same, compiled."""


def load_backend(name: GpuMethod, precision: Precision) -> Backend | None:
    """Return the backend, or print why it cannot be measured and return None."""
    num_threads = torch.get_num_threads()
    if name == "eager-cast":
        return CastEager(precision, num_threads)
    if name == "inductor-cast":
        return CastInductor(precision, num_threads)
    try:
        backend = get_backend(name, precision, num_threads)
    except Exception as error:  # TensorRT without its libraries raises whatever its loader meets
        print(f"{name} {precision} is not measured: {error}", file=sys.stderr)
        return None
    if not backend.runs_here:
        print(f"{name} {precision} is not measured: it can compile here, but not run", file=sys.stderr)
        return None
    return backend
