"""A job that this worker holds: which of its samples are where, and where its time went."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.executor import SampleRequest
from msf_scheduler.jobs import Provenance, Timings
from msf_scheduler.leases import Claim
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts, Work


def work_of(config: ModelConfig, num_steps: int, guidance_scale: float) -> Work:
    """A stage that is guided at some timesteps only counts as unguided, so that bounds stay optimistic."""
    guided = guidance_scale != 1.0
    base, residual = config.base.guidance.is_everywhere, config.residual.guidance.is_everywhere
    return Work(*config.split_steps(num_steps), guided and base, guided and residual)


@dataclass
class ActiveJob:
    """Written by the worker's event loop only. Samples wait here until a slot is free for them.

    Times are this process's monotonic seconds: before the claim Redis's clock counts, after it ours, and the two never
    meet in one difference.
    """

    claim: Claim
    config: ModelConfig
    provenance: Provenance
    waiting: deque[int] = field(default_factory=deque)  # sample indices
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # by sample index
    started_at: float | None = None  # when its first sample joined a step batch
    num_previews_shown: int = 0
    stage_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))
    stage_times: dict[Stage, tuple[float, float]] = field(default_factory=dict)  # first step's begin, last one's end

    def __post_init__(self) -> None:
        spec = self.claim.job.spec
        self.id = self.claim.job.id
        self.waiting.extend(spec.indices)
        self.work = work_of(self.config, spec.num_steps, spec.guidance_scale)
        self.hold_by(self.claim)

    def hold_by(self, claim: Claim) -> None:
        """Go on under this claim, from now on."""
        job = claim.job
        self.claim = claim
        self.claimed_at = time.monotonic()
        self.arrived_at = self.claimed_at - ((job.claimed_at or job.admitted_at) - job.admitted_at)
        self.deadline = None if job.deadline_at is None else self.arrived_at + job.deadline_at - job.admitted_at

    def work_left(self, num_base_steps: int, num_residual_steps: int) -> Work:
        """Of a sample that has so many steps left."""
        return self.work._replace(num_base_steps=num_base_steps, num_residual_steps=num_residual_steps)

    @property
    def is_strict(self) -> bool:
        return self.provenance.reproducibility == "strict"

    @property
    def is_complete(self) -> bool:
        return len(self.images) == self.claim.job.spec.num_samples

    def next_sample(self) -> SampleRequest:
        """Take the next waiting sample."""
        spec = self.claim.job.spec
        return SampleRequest(
            label=spec.label,
            seed=spec.seed,
            index=self.waiting.popleft(),
            num_base_steps=self.work.num_base_steps,
            num_residual_steps=self.work.num_residual_steps,
            guidance_scale=spec.guidance_scale,
        )

    def rode(self, stage: Stage, started_at: float, ended_at: float) -> None:
        """Book a step batch."""
        self.stage_s[stage] += ended_at - started_at
        self.stage_times[stage] = (self.stage_times.get(stage, (started_at, 0.0))[0], ended_at)

    def is_late(self, left: Work, costs: StepCosts, now: float) -> bool:
        """Whether a sample with this work left misses the deadline, however fast it goes from now on."""
        return self.deadline is not None and now + costs.least_s(left) > self.deadline

    def timings(self, encode_s: float) -> Timings:
        return Timings(
            queue_ms=1000 * ((self.started_at or self.claimed_at) - self.arrived_at),
            base_ms=1000 * self.stage_s[Stage.BASE],
            residual_ms=1000 * self.stage_s[Stage.RESIDUAL],
            decode_ms=1000 * self.stage_s[Stage.DECODE],
            encode_ms=1000 * encode_s,
            total_ms=1000 * (time.monotonic() - self.arrived_at),
        )
