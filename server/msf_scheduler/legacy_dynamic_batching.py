"""Request-level batching, for comparison: the batching of a server that calls a whole pipeline.

It follows Triton's dynamic batcher (https://github.com/triton-inference-server/server, docs/user_guide/batcher.md): a
batch forms from the oldest requests, waits at most `delay_s` to fill, and runs to its end in one size; all its requests
are answered then. No sample joins a running batch, and rows that are done stay in it as padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msf_scheduler.jobs import ModelKey
from msf_scheduler.legacy_step_batching import ActiveWork, Candidate, Hold, StepBatch
from msf_scheduler.legacy_step_costs import StepCosts
from msf_scheduler.stage import Stage

_ORDER = {stage: place for place, stage in enumerate(Stage)}
Sample = tuple[str, int]  # job id, index


@dataclass
class RequestLevelPolicy:
    """Policy with batches of at most `size` samples, in whole jobs unless one is larger; keeps the current batch."""

    size: int
    delay_s: float
    _members: set[Sample] = field(default_factory=set)
    _bucket: int = 1

    def choose(
        self, candidates: Sequence[Candidate], *, costs: Mapping[ModelKey, StepCosts], pressure: float, now: float
    ) -> StepBatch | Hold | None:
        """Return the next step of the current batch, or of a new one once it is full or has waited for `delay_s`."""
        if not candidates:
            self._members = set()
            return None
        running = [candidate for candidate in candidates if _sample(candidate) in self._members]
        if not running:
            running = self._next_batch(candidates)
            oldest = min(candidate.stepped_at for candidate in running)
            if len(running) < self.size and pressure < 1 and now < oldest + self.delay_s:
                return Hold(oldest + self.delay_s)
            self._members = {_sample(candidate) for candidate in running}
            self._bucket = costs[running[0].model].bucket_for(len(running))
        stage = min((candidate.stage for candidate in running), key=_ORDER.__getitem__)
        first = next(candidate for candidate in running if candidate.stage is stage)
        grouped = [candidate for candidate in running if candidate.group == first.group]
        strict = any(candidate.strict for candidate in grouped)
        allowed = costs[first.model].buckets_of(stage, first.guided, strict=strict)
        bucket = costs[first.model].bucket_for(self._bucket, allowed)
        slots = tuple(candidate.slot for candidate in grouped[:bucket])
        return StepBatch(first.model, stage, first.guided, slots, bucket, "request")

    def _next_batch(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the samples of the oldest jobs that fit together, of one model and all guided or none."""
        ordered = sorted(candidates, key=lambda c: (c.job.arrived_at, c.job.id, c.index))
        first = ordered[0]
        batch: list[Candidate] = []
        for job in _distinct(candidate.job for candidate in ordered):
            samples = [candidate for candidate in ordered if candidate.job.id == job.id]
            if batch and (
                len(batch) + len(samples) > self.size
                or (samples[0].model, samples[0].guided) != (first.model, first.guided)
            ):
                break
            batch += samples
        return batch


def _sample(candidate: Candidate) -> Sample:
    return candidate.job.id, candidate.index


def _distinct(jobs: Iterable[ActiveWork]) -> Iterable[ActiveWork]:
    return {job.id: job for job in jobs}.values()
