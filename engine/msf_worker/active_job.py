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
from msf_engine.executor import SampleRequest
from msf_engine.sampling import SampleNoise
from msf_scheduler.claims import Claim
from msf_scheduler.jobs import JobSpec, Progress, Provenance, Timings
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepPattern
from msf_scheduler.tenant_shares import ActiveWork


def pattern_of(config: ModelConfig, num_steps: int, guidance_scale: float) -> StepPattern:
    """Return the steps of one sample: a guided one takes two rows."""
    is_guided = np.float32(guidance_scale) != 1
    rows = [
        (1 + (is_guided & stage.guidance.contains(config.process.schedule(count).noise_times))).tolist()
        for stage, count in zip(config.stages, config.split_steps(num_steps), strict=True)
    ]
    return StepPattern.of(*rows, [1])


def sample_request(spec: JobSpec, index: int, num_steps: tuple[int, ...]) -> SampleRequest:
    """Return the request of one of a job's samples, given its steps in each denoising stage."""
    return SampleRequest(spec.label, spec.seed, index, num_steps, spec.guidance_scale, spec.negative_label)


@dataclass
class JobStageTimes:
    """Time of a job's step batches in a stage: their sum, the start of the first and the end of the last."""

    total_s: float
    started_at: float
    ended_at: float


@dataclass(eq=False)
class ActiveJob:
    """A claimed job. The device thread owns it until it has ended, then the event loop.

    Times are monotonic seconds of this process. Those before the claim are derived from Redis's clock, of which only
    differences are used.
    """

    claim: Claim
    config: ModelConfig
    provenance: Provenance
    noise: SampleNoise
    claimed_at: float = field(default_factory=time.monotonic)
    number: int = -1  # in the active set
    waiting: deque[int] = field(default_factory=deque)  # positions of samples without a slot
    slots: dict[int, int] = field(default_factory=dict)  # sample index by slot
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # (H, W, channels), by sample index
    started_at: float | None = None  # when its first sample joined a step batch
    stage_times: dict[Stage, JobStageTimes] = field(default_factory=dict)
    last_progress: tuple[Stage | None, float] = (None, 0.0)  # stage and time of the last progress published
    num_previews: int = 0  # published so far
    publication: asyncio.Task[None] | None = None  # the last write of progress or a preview

    def __post_init__(self) -> None:
        record = self.claim.job
        self.id, self.spec, self.terms = record.id, record.spec, record.terms
        self.arrived_at = self.claimed_at - ((record.claimed_at or record.admitted_at) - record.admitted_at)
        self.deadline: float | None = None
        if record.deadline_at is not None:
            self.deadline = self.arrived_at + record.deadline_at - record.admitted_at
        self.waiting.extend(range(self.spec.num_samples))
        self.num_steps = self.config.split_steps(self.spec.num_steps)

    @property
    def is_strict(self) -> bool:
        """True if the images must not depend on other samples in a batch."""
        return self.provenance.reproducibility == "strict"

    @property
    def is_complete(self) -> bool:
        """True once all samples are images."""
        return len(self.images) == self.spec.num_samples

    @property
    def work(self) -> ActiveWork:
        """The job as the batching policy sees it."""
        return ActiveWork(
            id=self.id,
            arrived_at=self.arrived_at,
            num_samples=self.spec.num_samples,
            priority=self.terms.priority,
            tenant=self.terms.tenant,
            weight=self.terms.weight,
            deadline=self.deadline,
            is_strict=self.is_strict,
        )

    def sample_request(self, position: int) -> SampleRequest:
        """Return the request of one of its samples."""
        return sample_request(self.spec, self.spec.indices[position], self.num_steps)

    def due_preview(self, step: int) -> int | None:
        """Return the number of the preview due before this step of the last denoising stage.

        They are even over the stage, the first at its beginning if there is an earlier stage to show.
        """
        is_first_stage = len(self.num_steps) == 1
        num_parts, num_steps = self.terms.num_previews + is_first_stage, self.num_steps[-1]
        dues = (
            math.ceil((number + is_first_stage) * num_steps / num_parts) for number in range(self.terms.num_previews)
        )
        return {due: number for number, due in enumerate(dues)}.get(step)

    def record_step(self, stage: Stage, started_at: float, ended_at: float) -> None:
        """Add a step batch to the stage's times."""
        times = self.stage_times.get(stage)
        if times is None:
            self.stage_times[stage] = JobStageTimes(ended_at - started_at, started_at, ended_at)
        else:
            times.total_s += ended_at - started_at
            times.ended_at = ended_at

    def timings(self, encode_s: float) -> Timings:
        """Return the job's timings up to now."""
        stage_ms = {stage: 1000 * times.total_s for stage, times in self.stage_times.items()}
        return Timings(
            queue_ms=1000 * ((self.started_at or self.claimed_at) - self.arrived_at),
            base_ms=stage_ms.get(Stage.BASE, 0.0),
            residual_ms=stage_ms.get(Stage.RESIDUAL, 0.0),
            denoise_ms=stage_ms.get(Stage.DENOISE, 0.0),
            decode_ms=stage_ms.get(Stage.DECODE, 0.0),
            encode_ms=1000 * encode_s,
            total_ms=1000 * (time.monotonic() - self.arrived_at),
        )

    def progress(self, stage: Stage, steps_done: int, num_steps: int) -> Progress:
        """Return the progress record of these counts."""
        return Progress(stage=stage, steps_done=steps_done, num_steps=num_steps, samples_done=len(self.images))
