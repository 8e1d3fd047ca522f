"""Batches as the device gets them: one int64 tensor (F, R) with a row for each field."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class StepField(IntEnum):
    """Rows of a step batch's (7, R) int64 tensor. A step writes a sample where TARGETS says, other rows nowhere."""

    SLOTS = 0
    STEPS = 1
    LABELS = 2
    PARTNERS = 3  # the row with the null label; an unguided row is its own
    TARGETS = 4
    COMPLETES = 5  # slots whose stage ends with this step
    SCALES = 6  # float32


class DecodeField(IntEnum):
    """Rows of a decode batch's (4, R) int64 tensor. The last stage is decoded as p x - q d: complete, p = 1, q = 0."""

    SLOTS = 0
    IS_BLANK = 1  # whether the last stage has had no step
    P = 2  # float32
    Q = 3  # float32


def floats(bits: Tensor) -> Tensor:
    """Read float32 (R, 1, 1, 1) from the first half of int64 (R,)."""
    return bits.view(torch.float32)[: len(bits), None, None, None]
