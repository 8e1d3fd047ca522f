"""Faults on purpose, to test what becomes of jobs: a seed that kills its worker, and one that hangs it."""

from __future__ import annotations

import os
import signal
import threading

from msf_scheduler.step_batching import StepBatch
from msf_worker.model_runner import Executed, ModelRunner


class FaultyRunner(ModelRunner):
    """A step batch with a sample of `fatal_seed` kills the process; one with `hanging_seed` never ends."""

    fatal_seed: int | None = None
    hanging_seed: int | None = None

    def execute(self, batch: StepBatch) -> Executed:
        seeds = {self.executor.slots[slot].request.seed for slot in batch.slots}
        if self.fatal_seed in seeds:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hanging_seed in seeds:
            threading.Event().wait()
        return super().execute(batch)
