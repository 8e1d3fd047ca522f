"""Stages that every sample passes, in order: the names that the scheduler and the engine share."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Stage of a sample."""

    BASE = "base"
    RESIDUAL = "residual"
    DECODE = "decode"
