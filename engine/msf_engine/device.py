"""Names and fingerprints of the devices that compute."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from contextlib import suppress
from pathlib import Path

_GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg")  # of Linux, and of Windows's


def has_gpu() -> bool:
    """Return whether torch can use an NVIDIA GPU; its slow import is spared where there is none."""
    if not any(Path(device).exists() for device in _GPU_DEVICES):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def release_memory() -> None:
    """Give the memory of deleted plans back to the system, where the C library or torch keeps it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def gpu_fingerprint() -> str:
    """Return the GPU's model and architecture, CUDA's version and the driver's."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} sm_{major}{minor} CUDA {torch.version.cuda} driver {_driver_version()}"


def cpu_fingerprint(num_threads: int) -> str:
    """Return the CPU's model, the instructions that torch's kernels use, and the number of threads."""
    import torch

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
