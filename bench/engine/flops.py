"""Floating-point operations of a denoiser, computed from its size, and a device's peak rate of them."""

from __future__ import annotations

import statistics
import time

import torch

from msf_engine.denoiser import DenoiserShape

_PEAK_REPEATS = 20


def row_flops(size: DenoiserShape) -> float:
    """Return the operations of one evaluation of one row: matrix products alone, two operations per multiply-add.

    A step of a guided sample takes two rows.
    """
    tokens, width, patch = (size.size // size.patch_size) ** 2, size.width, size.patch_size**2
    hidden = round(width * size.mlp_ratio)
    attention = tokens * width * 4 * width + 2 * tokens * tokens * width
    block = attention + 2 * tokens * width * hidden + 6 * width * width
    ends = tokens * (2 * size.in_channels + size.cond_channels) * patch * width + 2 * width * width
    return 2.0 * (size.depth * block + ends)


def matmul_peak(device: torch.device, side: int) -> float:
    """Measure the FLOP/s of a bf16 product of square matrices, the reference for a step: a median after a warm-up."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(2 * _PEAK_REPEATS):
        started_at = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started_at)
    return 2.0 * side**3 / statistics.median(seconds[_PEAK_REPEATS:])
