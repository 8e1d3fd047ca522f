"""torch.compile: kernels by Inductor (C++ on a CPU, Triton on a GPU), for each bucket's shapes."""

from __future__ import annotations

import shutil

import torch
import torch._dynamo.config
from torch import nn

from msf_engine.backends import BackendName, Precision
from msf_engine.backends.eager import EagerBackend
from msf_engine.errors import BackendUnavailable

COMPILERS = ("g++", "clang++")
MAX_SHAPES = 10_000
COMPILE_OPTIONS = {"fullgraph": True, "dynamic": False}


class InductorBackend(EagerBackend):
    """Compiles when a plan first runs at a bucket, into a cache of torch's own (`TORCHINDUCTOR_CACHE_DIR`).

    The default precision of a GPU is bf16, or fp16 on one without it.
    """

    name: BackendName = "inductor"

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        if precision is None and torch.cuda.is_available():
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        super().__init__(precision, num_threads)
        self.options |= COMPILE_OPTIONS
        # A module is compiled again for each bucket, all models from the same lines of code, and torch limits both.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MAX_SHAPES
        if not self.on_gpu and not any(shutil.which(compiler) for compiler in COMPILERS):
            raise BackendUnavailable("backend inductor needs a C++ compiler on a CPU: apt install g++")

    def _compiled(self, network: nn.Module) -> nn.Module:
        # Not mode="reduce-overhead": arenas capture graphs of whole steps; torch's own would belong to one thread.
        compiled: nn.Module = torch.compile(network, **COMPILE_OPTIONS)  # type: ignore[call-overload]
        return compiled


BACKEND = InductorBackend
