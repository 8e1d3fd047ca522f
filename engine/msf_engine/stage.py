"""Where a sample is on its way."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    BASE = "base"
    RESIDUAL = "residual"
    DECODE = "decode"
