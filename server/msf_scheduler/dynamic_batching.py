"""Request-level batching, for comparison: the batching of a server that calls a whole pipeline.

It follows Triton's dynamic batcher (https://github.com/triton-inference-server/server, docs/user_guide/batcher.md): a
batch forms from the oldest requests, waits at most `delay_s` to fill, and runs to its end in one size; all its requests
are answered then. No sample joins a running batch, and rows that are done stay in it as padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.step_batching import Hold, StepBatch, first_fitting, make_batch

SampleId = tuple[str, int]  # job id, index


@dataclass
class RequestLevelPolicy:
    """Policy with batches of at most `size` samples, in whole jobs unless one is larger; keeps the current batch."""

    size: int
    delay_s: float
    _members: set[SampleId] = field(default_factory=set)
    _num_rows: int = 0  # of the current batch, at its start

    def choose(self, active: ActiveSet, now: float) -> StepBatch | Hold | None:
        """Return the next step of the current batch, or of a new one once it is full or has waited for `delay_s`."""
        samples = active.samples
        ids = {
            number: (active.work(job).id, index)
            for number, (job, index) in enumerate(
                zip(samples.job[: samples.end].tolist(), samples.index[: samples.end].tolist(), strict=True)
            )
            if job >= 0
        }
        running = [number for number, sample in ids.items() if sample in self._members]
        if not running:
            self._members = set()
            if not ids:
                return None
            running = self._next_batch(active)
            due_at = float(active.jobs.stepped_at[samples.job[running]].min()) + self.delay_s
            if len(running) < self.size and now < due_at:
                return Hold(due_at)
            self._members = {ids[number] for number in running}
            self._num_rows = int(samples.rows[running].sum())
        groups = samples.group[running]
        return make_batch(
            active, first_fitting(active, np.array(running)[groups == groups.min()]), "request", self._num_rows
        )

    def _next_batch(self, active: ActiveSet) -> list[int]:
        """Return the samples of the oldest jobs of one model that fit together."""
        batch: list[int] = []
        jobs = np.unique(active.samples.job[: active.samples.end])
        arrivals = sorted((active.work(job).arrived_at, active.work(job).id, job) for job in jobs.tolist() if job >= 0)
        for _, _, job in arrivals:
            samples = active.samples_of(job).tolist()
            is_other_model = active.jobs.model[job] != active.jobs.model[arrivals[0][2]]
            if batch and (is_other_model or len(batch) + len(samples) > self.size):
                break
            batch += samples
        return batch
