"""A job that this worker holds: its samples, and where its time went."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.executor import SampleRequest, Slot
from msf_scheduler.jobs import Preview, Provenance, Timings
from msf_scheduler.leases import Claim
from msf_scheduler.legacy_step_costs import StepCosts, Work
from msf_scheduler.stage import Stage


def work_of(config: ModelConfig, num_steps: int, guidance_scale: float) -> Work:
    """Return the work of one sample.

    A stage that is guided at only some of its timesteps counts as unguided, so that time bounds stay optimistic.
    """
    guided = guidance_scale != 1.0
    base, residual = config.base.guidance.is_everywhere, config.residual.guidance.is_everywhere
    return Work(*config.split_steps(num_steps), guided and base, guided and residual)


@dataclass
class ActiveJob:
    """A claimed job, written by the worker's event loop only. Its samples wait here until a slot is free.

    Times are monotonic seconds of this process. Those before the claim are derived from Redis's clock, of which only
    differences are used.
    """

    claim: Claim
    config: ModelConfig
    provenance: Provenance
    waiting: deque[int] = field(default_factory=deque)  # sample indices
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # (H, W, channels), by sample index
    started_at: float | None = None  # when its first sample joined a step batch
    stage_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    stage_times: dict[Stage, tuple[float, float]] = field(default_factory=dict)  # start of first step, end of last
    num_previews: int = 0  # published so far
    publication: asyncio.Task[None] | None = None  # the last write of progress or a preview

    def __post_init__(self) -> None:
        self.rebind(self.claim)
        self.waiting.extend(self.spec.indices)
        self.work = work_of(self.config, self.spec.num_steps, self.spec.guidance_scale)

    def rebind(self, claim: Claim) -> None:
        """Replace the lease after a reclaim."""
        self.claim = claim
        self.record = record = claim.job
        self.id, self.spec, self.terms = record.id, record.spec, record.terms
        self.last_progress: tuple[Stage | None, float] = (None, 0.0)  # stage and time of the last progress published
        self.claimed_at = time.monotonic()
        self.arrived_at = self.claimed_at - ((record.claimed_at or record.admitted_at) - record.admitted_at)
        self.deadline: float | None = None
        if record.deadline_at is not None:
            self.deadline = self.arrived_at + record.deadline_at - record.admitted_at

    @property
    def is_strict(self) -> bool:
        """True if the images must not depend on other samples in a batch."""
        return self.provenance.reproducibility == "strict"

    @property
    def is_complete(self) -> bool:
        """True once all samples are images."""
        return len(self.images) == self.spec.num_samples

    def next_sample(self) -> SampleRequest:
        """Take the next waiting sample."""
        return SampleRequest(
            label=self.spec.label,
            seed=self.spec.seed,
            index=self.waiting.popleft(),
            num_base_steps=self.work.num_base_steps,
            num_residual_steps=self.work.num_residual_steps,
            guidance_scale=self.spec.guidance_scale,
        )

    def record_step(self, stage: Stage, started_at: float, ended_at: float) -> None:
        """Add a step batch to the stage's time."""
        self.stage_s[stage] += ended_at - started_at
        self.stage_times[stage] = (self.stage_times.get(stage, (started_at, 0.0))[0], ended_at)

    def is_late(self, work_left: Work, costs: StepCosts, now: float) -> bool:
        """Return whether a sample with this work left misses the deadline even at the fastest measured pace."""
        return self.deadline is not None and now + costs.least_s(work_left) > self.deadline

    def timings(self, encode_s: float) -> Timings:
        """Return the job's timings up to now."""
        return Timings(
            queue_ms=1000 * ((self.started_at or self.claimed_at) - self.arrived_at),
            base_ms=1000 * self.stage_s[Stage.BASE],
            residual_ms=1000 * self.stage_s[Stage.RESIDUAL],
            decode_ms=1000 * self.stage_s[Stage.DECODE],
            encode_ms=1000 * encode_s,
            total_ms=1000 * (time.monotonic() - self.arrived_at),
        )


@dataclass
class ActiveSample:
    """A sample in a slot. `stepped_at` is when it last took a step, or joined, in monotonic seconds."""

    job: ActiveJob
    index: int
    state: Slot  # the executor's
    stepped_at: float

    @property
    def work_left(self) -> Work:
        """The work from here to the image."""
        num_base_steps, num_residual_steps = self.state.steps_left
        return self.job.work._replace(num_base_steps=num_base_steps, num_residual_steps=num_residual_steps)

    def due_preview(self) -> Preview | None:
        """Return the preview due now: the first when the base is complete, the others evenly over the residual."""
        num_previews = self.job.terms.num_previews
        if not num_previews or self.state.stage is not Stage.RESIDUAL:
            return None
        num_steps = self.job.work.num_residual_steps
        numbers = {math.ceil(number * num_steps / num_previews): number for number in range(num_previews)}  # by step
        number = numbers.get(self.state.step)
        return None if number is None else Preview(index=self.index, number=number)
