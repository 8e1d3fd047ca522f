"""Weights stored as 8-bit integers with a scale per row, in half of bfloat16's bytes.

Every row is rounded to 127 steps on each side of zero, which changes weights by about 0.5 % of their norm. Only files
hold them so: networks are built in float32, whatever their weights are stored as.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SCALE = ":scale"  # suffix of the tensor (rows, 1, ...) that a tensor of integers is multiplied by
MIN_SIZE = 4096  # smaller tensors are not worth their rounding
_LEVELS = 127

Weight = TypeVar("Weight", bound=Any)  # torch's tensor or numpy's array


def to_int8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices and convolutions as integers with their scales, and the other weights as they are."""
    import torch

    stored = {}
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.numel() < MIN_SIZE:
            stored[name] = weight
            continue
        largest = weight.float().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / _LEVELS
        stored[name] = (weight.float() / scale).round().to(torch.int8)
        stored[name + SCALE] = scale
    return stored


def from_int8(stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights of `to_int8`, as tensors or as numpy's arrays. Those of other files are left as they are.

    They are rounded to bfloat16, whose steps are no larger, so that plans hold them in two bytes.
    """
    weights = {name: value for name, value in stored.items() if not name.endswith(SCALE)}
    return {
        name: _to_bfloat16(weight * stored[name + SCALE]) if name + SCALE in stored else weight
        for name, weight in weights.items()
    }


def _to_bfloat16(weight: Any) -> Any:
    """Round a tensor or an array to the nearest values of bfloat16, ties to even, in float32."""
    if not isinstance(weight, np.ndarray):
        return weight.bfloat16().float()
    bits = weight.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
