"""torch.compile: kernels by Inductor (C++ on a CPU, Triton on a GPU, there in a CUDA graph)."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from msf_serve.engine.backends import BackendName, Precision
from msf_serve.engine.backends.eager import EagerBackend
from msf_serve.engine.errors import BackendUnavailable

COMPILERS = ("g++", "clang++")


class InductorBackend(EagerBackend):
    """Compiles when a plan first runs, into a cache of torch's own (`TORCHINDUCTOR_CACHE_DIR`)."""

    name: BackendName = "inductor"

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        super().__init__(precision, num_threads)
        if self._device.torch.type == "cpu" and not any(shutil.which(compiler) for compiler in COMPILERS):
            raise BackendUnavailable("backend inductor needs a C++ compiler on a CPU: apt install g++")

    def _prepared(self, module: nn.Module) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        mode = "reduce-overhead" if self._device.torch.type == "cuda" else None
        return torch.compile(super()._prepared(module), fullgraph=True, dynamic=False, mode=mode)


BACKEND = InductorBackend
