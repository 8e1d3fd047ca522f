"""Plans that fail for samples of one label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msf_engine.plan import Array, Plan
from tests.worker.support import SPEC, WrappedPlan

FAILING = SPEC.model_copy(update={"label": 2})


class RaisingPlan(WrappedPlan):
    """Fails when a batch with a failing sample is started."""

    def start(self, num_rows: int) -> None:
        if has_failing(self, num_rows).any():
            raise RuntimeError("the device is on fire")
        super().start(num_rows)


class RaisingLaterPlan(WrappedPlan):
    """Fails while a batch with a failing sample is computed."""

    is_failing = False

    def start(self, num_rows: int) -> None:
        self.is_failing = bool(has_failing(self, num_rows).any())
        super().start(num_rows)

    def wait(self) -> Array:
        if self.is_failing:
            raise RuntimeError("the device is on fire")
        return super().wait()


class NonFinitePlan(WrappedPlan):
    """Computes NaN for failing samples."""

    def start(self, num_rows: int) -> None:
        self.rows = has_failing(self, num_rows).copy()
        super().start(num_rows)

    def wait(self) -> Array:
        velocity = super().wait().copy()
        velocity[self.rows] = np.nan
        return velocity


def has_failing(plan: Plan, num_rows: int) -> NDArray[np.bool_]:
    """Return which rows of the next batch have the failing label."""
    labels: NDArray[np.int64] = plan.inputs(num_rows)[2]
    return np.equal(labels, FAILING.label)
