"""Mixed precision: products in bfloat16 where the hardware multiplies it, weights in float32."""

from __future__ import annotations

import torch


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which a training multiplies; CPUs without bfloat16 products emulate them ten times slower.

    The answer is the machine's, so a run that is resumed on another one may continue in another precision.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or _cpu_multiplies_bfloat16())


def _cpu_multiplies_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported()
