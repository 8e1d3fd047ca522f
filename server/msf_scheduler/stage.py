"""Stages that a sample passes: the names that the scheduler and the engine share."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Stage of a sample: BASE, RESIDUAL and DECODE of a two-stage model, DENOISE and DECODE of a one-stage model."""

    BASE = "base"
    RESIDUAL = "residual"
    DENOISE = "denoise"
    DECODE = "decode"


TWO_STAGES = Stage.BASE, Stage.RESIDUAL, Stage.DECODE
MAX_STAGES = len(TWO_STAGES)
