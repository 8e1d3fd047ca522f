"""Where torch computes: the first NVIDIA GPU if there is one, else the CPU."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf_engine.cuda_plan import CudaPlan
from msf_engine.plan import Plan


class Device:
    """`num_threads` are those of the CPU's kernels."""

    def __init__(self, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self.torch = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name = torch.cuda.get_device_name() if self.torch.type == "cuda" else cpu_name()
        self._num_threads = num_threads

    @property
    def fingerprint(self) -> str:
        """What a result may depend on: on a GPU the model, the driver's and CUDA's version; the CPU's kind, threads."""
        if self.torch.type == "cuda":
            return gpu_fingerprint()
        kernels = torch.backends.cpu.get_cpu_capability()
        return f"{platform.machine()} {self.name} {kernels} {self._num_threads} threads"

    def plan(
        self,
        function: Callable[..., Tensor | tuple[Tensor, ...]],
        example: tuple[Tensor, ...],
        graph_pool: Any = None,
    ) -> Plan:
        """Run `function` here on the host's tensors, shaped like `example`; with a `graph_pool` as a CUDA graph."""

        def compute(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                outputs = function(*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        return CudaPlan(compute, example, graph_pool) if self.torch.type == "cuda" else compute


def gpu_fingerprint() -> str:
    """The GPU's model and architecture, CUDA's version and the driver's."""
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} sm_{major}{minor} CUDA {torch.version.cuda} driver {_driver_version()}"


def _driver_version() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return "unknown"


def cpu_name() -> str:
    """The CPU's model as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
