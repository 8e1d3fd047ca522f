"""Steps of all patterns in flat arrays, so that a sample's place in its pattern is one integer."""

from __future__ import annotations

import numpy as np

from msf_scheduler.array_table import Floats, Int8s, Int32s
from msf_scheduler.step_costs import StepPattern

END = -1  # stage behind the last step


class PatternTable:
    """Interned patterns, one after the other. A position is a step of one of them, or the end of one.

    `stage` and `rows` are those of the step at a position; `is_change` is 1 where they differ from the step before;
    `steps_left` and `rows_left` count, by stage, the step and all after it.
    """

    def __init__(self, num_stages: int) -> None:
        self.num_stages = num_stages
        self.stage: Int8s = np.empty(0, np.int8)
        self.rows: Floats = np.empty(0)
        self.is_change: Int8s = np.empty(0, np.int8)
        self.steps_left: Int32s = np.empty((num_stages, 0), np.int32)
        self.rows_left: Floats = np.empty((num_stages, 0))
        self._starts: dict[StepPattern, int] = {}

    def start_of(self, pattern: StepPattern) -> int:
        """Return the position of a pattern's first step."""
        start = self._starts.get(pattern)
        if start is None:
            start = self._starts[pattern] = len(self.stage)
            self._append(pattern)
        return start

    def _append(self, pattern: StepPattern) -> None:
        stages, rows = np.array([*pattern.stages, END]), np.array([*pattern.rows, 0])
        if len(stages) == 1 or (np.diff(stages[:-1]) < 0).any() or not 0 <= stages[0] <= stages[-2] < self.num_stages:
            raise ValueError(f"Invalid stages {pattern.stages}. Allowed: 0 to {self.num_stages - 1}, in order.")
        is_at = stages == np.arange(self.num_stages)[:, None]  # (stage, step)
        is_change = np.append(True, (np.diff(stages) != 0) | (np.diff(rows) != 0))
        steps_left = is_at[:, ::-1].cumsum(1)[:, ::-1]
        rows_left = (is_at * rows)[:, ::-1].cumsum(1)[:, ::-1]
        self.stage = np.append(self.stage, stages.astype(np.int8))
        self.rows = np.append(self.rows, rows.astype(np.float64))
        self.is_change = np.append(self.is_change, is_change.astype(np.int8))
        self.steps_left = np.append(self.steps_left, steps_left.astype(np.int32), axis=1)
        self.rows_left = np.append(self.rows_left, rows_left.astype(np.float64), axis=1)
