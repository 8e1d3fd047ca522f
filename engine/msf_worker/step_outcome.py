"""Results of one step batch: of its execution on the device, and for the jobs in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msf_engine.executor import StepResult
from msf_scheduler.jobs import JobError, Preview, Progress
from msf_worker.active_job import ActiveJob


class BatchMember(NamedTuple):
    """A sample in a step batch, and which step of its stage it takes."""

    job: str
    sample: int
    step: int


@dataclass(frozen=True)
class Execution:
    """Result of a step batch in the device thread, and how long it took; `previews` were decoded after it."""

    result: StepResult
    seconds: float
    previews: list[tuple[ActiveJob, Preview, NDArray[np.uint8]]]


@dataclass(frozen=True)
class StepOutcome:
    """Consequences of a step batch for its jobs. `seconds` is None if the engine failed."""

    started_at: float
    seconds: float | None = None
    members: Sequence[BatchMember] = ()
    completed: Sequence[ActiveJob] = ()
    failed: Sequence[tuple[ActiveJob, JobError]] = ()
    previews: Sequence[tuple[ActiveJob, Preview, NDArray[np.uint8]]] = ()
    progress: Sequence[tuple[ActiveJob, Progress]] = ()
    has_freed_slots: bool = False
