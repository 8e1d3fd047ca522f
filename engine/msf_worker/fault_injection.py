"""Fault injection for tests of recovery: seeds that kill or hang their worker."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence

from msf_engine.arenas import DecodeRows, StepRows
from msf_engine.executor import Executor, SampleRequest, Slots
from msf_engine.model_plans import ModelPlans
from msf_engine.sampling import SampleNoise


class FaultyExecutor(Executor):
    """Kills the process at a batch with a sample of `fatal_seed`, and never ends one of `hanging_seed`."""

    def __init__(self, plans: ModelPlans, capacity: int, fatal_seed: int | None, hanging_seed: int | None) -> None:
        super().__init__(plans, capacity)
        self.fatal_seed, self.hanging_seed = fatal_seed, hanging_seed
        self._seeds: dict[int, int] = {}  # by slot

    def join(self, requests: Sequence[SampleRequest], noise: SampleNoise | None = None) -> list[int]:
        """Remember the seeds of samples that join."""
        slots = super().join(requests, noise)
        self._seeds |= {slot: request.seed for slot, request in zip(slots, requests, strict=True)}
        return slots

    def start(self, slots: Slots, bucket: int | None = None) -> StepRows | DecodeRows:
        """Start a batch unless a sample in it has one of the seeds."""
        seeds = {self._seeds[slot] for slot in map(int, slots)}
        if self.fatal_seed in seeds:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.hanging_seed in seeds:
            threading.Event().wait()
        return super().start(slots, bucket)
