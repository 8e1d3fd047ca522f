"""Fault injection for tests of recovery: seeds that kill or hang their worker."""

from __future__ import annotations

import os
import signal
import threading

from msf_engine.executor import Executor
from msf_engine.repository import ModelVersion
from msf_scheduler.legacy_step_batching import StepBatch
from msf_worker.model_runner import ModelRunner
from msf_worker.step_outcome import Execution


class FaultyRunner(ModelRunner):
    """Kills the process at a step batch with a sample of `fatal_seed`, and never ends one of `hanging_seed`."""

    def __init__(
        self, model: ModelVersion, executor: Executor, fatal_seed: int | None, hanging_seed: int | None
    ) -> None:
        super().__init__(model, executor)
        self.fatal_seed, self.hanging_seed = fatal_seed, hanging_seed

    def execute(self, batch: StepBatch) -> Execution:
        """Run a step batch unless a sample in it has one of the seeds."""
        seeds = {self.executor.slots[slot].request.seed for slot in batch.slots}
        if self.fatal_seed in seeds:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hanging_seed in seeds:
            threading.Event().wait()
        return super().execute(batch)
