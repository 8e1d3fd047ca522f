"""The backends that `bench.gpu` compares: the product's, and the network cast as a whole, as people run it by hand."""

from __future__ import annotations

import sys

import torch
from torch import nn

from bench.engine.whole_cast import whole_cast
from bench.gpu.cells import Contender
from msf_engine.backends import Backend, Precision, get_backend
from msf_engine.backends.eager import EagerBackend
from msf_engine.backends.inductor import InductorBackend
from msf_engine.guided_step import StepModule
from msf_engine.precision import DTYPES


class CastEager(EagerBackend):
    """`module.to(dtype)`: less exact than ours, and the least that eager mode has to do."""

    def _placed(self, module: nn.Module) -> nn.Module:
        assert isinstance(module, StepModule)
        return whole_cast(module, DTYPES[self.precision]).to(self._device.torch)


class CastInductor(CastEager, InductorBackend):
    """The same, compiled."""


class Backends:
    """Loaded once each; what cannot be loaded is told once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Contender, Precision], Backend | None] = {}

    def get(self, name: Contender, precision: Precision) -> Backend | None:
        if (name, precision) not in self._known:
            self._known[name, precision] = self._load(name, precision)
        return self._known[name, precision]

    @staticmethod
    def _load(name: Contender, precision: Precision) -> Backend | None:
        num_threads = torch.get_num_threads()
        try:
            if name == "eager-cast":
                return CastEager(precision, num_threads)
            if name == "inductor-cast":
                return CastInductor(precision, num_threads)
            backend = get_backend(name, precision, num_threads)
        except Exception as error:  # TensorRT without its libraries raises whatever its loader meets
            print(f"{name} {precision} is not measured: {error}", file=sys.stderr)
            return None
        if not backend.runs_here:
            print(f"{name} {precision} is not measured: it can compile here, but not run", file=sys.stderr)
            return None
        return backend
