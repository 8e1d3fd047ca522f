"""A job that this worker holds: which of its samples are where, and where its time went."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from msf_serve.engine.config import ModelConfig, Stage
from msf_serve.engine.executor import SampleRequest
from msf_serve.scheduler.jobs import Timings
from msf_serve.scheduler.queue import Claim


@dataclass
class ActiveJob:
    """Written by the worker's event loop only. Samples wait here until a slot is free for them."""

    claim: Claim
    claimed_at: float = field(default_factory=time.monotonic)
    waiting: deque[int] = field(default_factory=deque)  # sample indices
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # by sample index
    started_at: float | None = None  # when its first sample joined a step batch
    stage_s: dict[Stage, float] = field(default_factory=lambda: dict.fromkeys(Stage, 0.0))

    def __post_init__(self) -> None:
        self.waiting.extend(range(self.claim.job.spec.num_samples))

    @property
    def id(self) -> str:
        return self.claim.job.id

    @property
    def is_complete(self) -> bool:
        return len(self.images) == self.claim.job.spec.num_samples

    def next_sample(self, config: ModelConfig) -> SampleRequest:
        """Take the next waiting sample."""
        spec = self.claim.job.spec
        num_base_steps, num_residual_steps = config.split_steps(spec.num_steps)
        return SampleRequest(
            label=spec.label,
            seed=spec.seed,
            index=self.waiting.popleft(),
            num_base_steps=num_base_steps,
            num_residual_steps=num_residual_steps,
            guidance_scale=spec.guidance_scale,
        )

    def timings(self, encode_s: float) -> Timings:
        """Before the claim Redis's clock counts, after it ours: two clocks never meet in one difference."""
        job = self.claim.job
        claim_delay_s = (job.claimed_at or job.admitted_at) - job.admitted_at
        started_at = self.started_at or self.claimed_at
        return Timings(
            queue_ms=1000 * (claim_delay_s + started_at - self.claimed_at),
            base_ms=1000 * self.stage_s[Stage.BASE],
            residual_ms=1000 * self.stage_s[Stage.RESIDUAL],
            decode_ms=1000 * self.stage_s[Stage.DECODE],
            encode_ms=1000 * encode_s,
            total_ms=1000 * (claim_delay_s + time.monotonic() - self.claimed_at),
        )
