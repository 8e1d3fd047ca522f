"""torch.compile: kernels by Inductor (C++ on a CPU, Triton on a GPU, there in a CUDA graph)."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
import torch._dynamo.config
from torch import Tensor, nn

from msf_engine.backends import BackendName, Precision, describe_options
from msf_engine.backends.eager import EagerBackend
from msf_engine.errors import BackendUnavailable

COMPILERS = ("g++", "clang++")
MAX_PLANS = 10_000
COMPILE_OPTIONS = {"fullgraph": True, "dynamic": False}


class InductorBackend(EagerBackend):
    """Compiles when a plan first runs, into a cache of torch's own (`TORCHINDUCTOR_CACHE_DIR`).

    On a GPU in bf16 unless told otherwise.
    """

    name: BackendName = "inductor"

    def __init__(self, precision: Precision | None, num_threads: int) -> None:
        if precision is None and torch.cuda.is_available():
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        super().__init__(precision, num_threads)
        if self._device.torch.type == "cpu" and not any(shutil.which(compiler) for compiler in COMPILERS):
            raise BackendUnavailable("backend inductor needs a C++ compiler on a CPU: apt install g++")
        # Plans are compiled from the same few lines of code, and it is by these that torch counts.
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = MAX_PLANS
        if self._device.torch.type == "cuda":
            # Not torch's own (mode="reduce-overhead"): they belong to one thread, and plans are loaded on another.
            self._graph_pool = torch.cuda.graph_pool_handle()

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint} {describe_options(COMPILE_OPTIONS)}"

    def _prepared(self, module: nn.Module) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        compiled: nn.Module = torch.compile(module, **COMPILE_OPTIONS)  # type: ignore[call-overload]
        return compiled


BACKEND = InductorBackend
