"""Tables of active samples and of their jobs: a column for each property, a row for each number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msf_scheduler.array_table import ArrayTable, Floats, Int32s

NO_DEADLINE_S = 1e12  # after arrival
NO_GROUP = -1  # of a free number

Numbers = NDArray[np.intp]  # indices


class SampleTable(ArrayTable):
    """Active samples. `group` is the model's number times the number of stages, plus the stage."""

    job: Numbers
    index: Int32s  # among the job's samples
    slot: Int32s
    position: Numbers  # of the next step, in the table of patterns
    group: NDArray[np.int16]
    rows: Floats  # of the next step

    def __init__(self) -> None:
        super().__init__(
            job=(np.intp, -1, ()),
            index=(np.int32, 0, ()),
            slot=(np.int32, 0, ()),
            position=(np.intp, 0, ()),
            group=(np.int16, NO_GROUP, ()),
            rows=(np.float64, 0, ()),
        )


class JobTable(ArrayTable):
    """Jobs of the active samples, and of those that have not joined yet."""

    model: Int32s
    start: Int32s  # of its pattern
    arrived_at: Floats
    deadline: Floats
    allowed_s: Floats  # from arrival to deadline
    weight: Floats  # of its priority and tenant
    importance: Floats  # its share of that
    stepped_at: Floats  # when a sample last took a step, or joined after all others; inf without active samples
    is_strict: NDArray[np.bool_]
    alarm_at: Floats  # its deadline may matter from then on
    rows: Floats  # (left or in all, stage, job), of all its samples

    def __init__(self, num_stages: int) -> None:
        super().__init__(
            model=(np.int32, 0, ()),
            start=(np.int32, 0, ()),
            arrived_at=(np.float64, 0, ()),
            deadline=(np.float64, NO_DEADLINE_S, ()),
            allowed_s=(np.float64, NO_DEADLINE_S, ()),
            weight=(np.float64, 0, ()),
            importance=(np.float64, 0, ()),
            stepped_at=(np.float64, np.inf, ()),
            is_strict=(np.bool_, False, ()),
            alarm_at=(np.float64, np.inf, ()),
            rows=(np.float64, 0, (2, num_stages)),
        )
