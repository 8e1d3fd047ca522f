"""Names and fingerprints of the devices that compute."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def gpu_fingerprint() -> str:
    """Return the GPU's model and architecture, CUDA's version and the driver's."""
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} sm_{major}{minor} CUDA {torch.version.cuda} driver {_driver_version()}"


def cpu_fingerprint(num_threads: int) -> str:
    """Return the CPU's model, the instructions that torch's kernels use, and the number of threads."""
    return f"{platform.machine()} {cpu_name()} {torch.backends.cpu.get_cpu_capability()} {num_threads} threads"


def cpu_name() -> str:
    """Return the CPU's model as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _driver_version() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return "unknown"
