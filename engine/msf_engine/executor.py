"""The step executor: samples in slots, advanced together one step at a time.

Samples of one step batch may be at different steps and have different labels, seeds and guidance scales; they join and
leave between steps. Which slots form a batch is the batching policy's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msf_engine.model_plans import ModelPlans, smallest_bucket
from msf_engine.sampling import Trajectory, initial_noise, noisy_condition, stage_trajectory
from msf_scheduler.stage import Stage

NEXT_STAGE = {Stage.BASE: Stage.RESIDUAL, Stage.RESIDUAL: Stage.DECODE}


@dataclass(frozen=True)
class SampleRequest:
    """One image to make. (`seed`, `index`) alone decide its noise."""

    label: int
    seed: int
    index: int
    num_base_steps: int
    num_residual_steps: int
    guidance_scale: float


@dataclass
class Slot:
    """An active sample. Only the executor changes it."""

    request: SampleRequest
    stage: Stage
    step: int
    trajectory: Trajectory  # of the stage; of RESIDUAL while decoding
    x: Tensor  # (C, h, w) of the stage
    d_prev: Tensor
    cond: Tensor
    base: Tensor  # normalised; empty during BASE

    @property
    def guided(self) -> bool:
        return self.stage is not Stage.DECODE and self.trajectory.guided[self.step]

    @property
    def steps_left(self) -> tuple[int, int]:
        """Remaining denoising steps of BASE and of RESIDUAL."""
        if self.stage is Stage.DECODE:
            return 0, 0
        remaining = len(self.trajectory) - self.step
        return (remaining, self.request.num_residual_steps) if self.stage is Stage.BASE else (0, remaining)


@dataclass(frozen=True)
class StepResult:
    """Outcome of a step batch. `images` (H, W, channels) uint8 by slot; samples of `failed` slots are not finite."""

    stage: Stage
    bucket: int
    images: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    failed: tuple[int, ...] = ()


class Executor:
    """Runs one model version's plans for at most `num_slots` samples. Not thread-safe: one caller at a time."""

    def __init__(self, plans: ModelPlans, num_slots: int) -> None:
        self.plans = plans
        self.config = plans.config
        self.num_slots = num_slots
        self.slots: dict[int, Slot] = {}
        self._free = list(reversed(range(num_slots)))
        self._trajectory = lru_cache(maxsize=256)(self._make_trajectory)

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    def join(self, request: SampleRequest) -> int:
        """Give a sample a slot; at least one must be free."""
        trajectory = self._trajectory(Stage.BASE, request.num_base_steps, request.guidance_scale)
        noise = initial_noise(self.config, Stage.BASE, seed=request.seed, index=request.index)
        number = self._free.pop()
        self.slots[number] = Slot(
            request, Stage.BASE, 0, trajectory, noise, torch.zeros_like(noise), cond=noise[:0], base=noise[:0]
        )
        return number

    def leave(self, slot: int) -> None:
        """Free a slot at any point of its sample."""
        del self.slots[slot]
        self._free.append(slot)

    def step(self, numbers: Sequence[int], bucket: int | None = None) -> StepResult:
        """Advance the samples of these slots by one step, or decode them; all need a plan of the same kind.

        Samples that are decoded or that failed leave their slots. The default bucket is the smallest that holds them.
        """
        slots = [self.slots[number] for number in numbers]
        stage = slots[0].stage
        assert all(slot.stage is stage and slot.guided == slots[0].guided for slot in slots)
        bucket = bucket or smallest_bucket(self.plans.buckets, len(slots))
        if stage is Stage.DECODE:
            result = self._decode(numbers, slots, bucket)
        else:
            result = self._denoise(numbers, slots, bucket)
        for number in (*result.images, *result.failed):
            self.leave(number)
        return result

    def preview(self, numbers: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
        """Decode estimates of samples in RESIDUAL, without advancing them: (H, W, channels) uint8 by slot.

        Before the residual's first step the estimate is the base alone, as if decoded from `up(base)`; later, the end
        of the path along the last step's velocity.
        """
        if not numbers:
            return {}
        slots = [self.slots[number] for number in numbers]
        residuals = torch.stack([self._estimated_residual(slot) for slot in slots])
        (pixels,) = self.plans.bucketed((Stage.DECODE, False))(torch.stack([slot.base for slot in slots]), residuals)
        return dict(zip(numbers, pixels.numpy(), strict=True))

    def _estimated_residual(self, slot: Slot) -> Tensor:
        """Return the estimate, normalised as `Slot.x`."""
        assert slot.stage is Stage.RESIDUAL
        if slot.step == 0:
            statistics = self.config.residual.statistics
            mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
            return (-mean / std)[:, None, None].expand_as(slot.x)
        return slot.x - slot.trajectory.times[slot.step] * slot.d_prev

    def _denoise(self, numbers: Sequence[int], slots: list[Slot], bucket: int) -> StepResult:
        stage = slots[0].stage
        plan = self.plans.by_kind[stage, slots[0].guided][bucket]
        labels = [slot.request.label for slot in slots]
        scalars = _padded([slot.trajectory.coefficients[slot.step] for slot in slots], bucket)
        d, x = plan(
            _padded([slot.x for slot in slots], bucket),
            _padded([slot.d_prev for slot in slots], bucket),
            _padded([slot.cond for slot in slots], bucket),
            _padded([slot.trajectory.time_embedding[slot.step] for slot in slots], bucket),
            torch.tensor(labels + labels[:1] * (bucket - len(labels))),
            *scalars.unbind(1),
        )
        finite = np.isfinite(x.numpy()).all(axis=(1, 2, 3))
        for row, slot in enumerate(slots):
            slot.x, slot.d_prev = x[row], d[row]
            slot.step += 1
            if slot.step == len(slot.trajectory):
                self._enter_next_stage(slot)
        failed = tuple(number for number, is_finite in zip(numbers, finite, strict=False) if not is_finite)
        return StepResult(stage, bucket, failed=failed)

    def _decode(self, numbers: Sequence[int], slots: list[Slot], bucket: int) -> StepResult:
        decode = self.plans.by_kind[Stage.DECODE, False][bucket]
        (pixels,) = decode(_padded([slot.base for slot in slots], bucket), _padded([slot.x for slot in slots], bucket))
        return StepResult(Stage.DECODE, bucket, images=dict(zip(numbers, pixels.numpy(), strict=False)))

    def _enter_next_stage(self, slot: Slot) -> None:
        request = slot.request
        slot.stage = NEXT_STAGE[slot.stage]
        slot.step = 0
        if slot.stage is Stage.DECODE:
            return
        slot.base = slot.x
        slot.cond = noisy_condition(self.config, slot.base, seed=request.seed, index=request.index)
        slot.x = initial_noise(self.config, Stage.RESIDUAL, seed=request.seed, index=request.index)
        slot.d_prev = torch.zeros_like(slot.x)
        slot.trajectory = self._trajectory(Stage.RESIDUAL, request.num_residual_steps, request.guidance_scale)

    def _make_trajectory(self, stage: Stage, num_steps: int, guidance_scale: float) -> Trajectory:
        return stage_trajectory(self.config, stage, self.plans.time_embeddings[stage], num_steps, guidance_scale)


def _padded(rows: list[Tensor], bucket: int) -> Tensor:
    """Stack rows and fill the bucket with copies of the first: padding must be as harmless as a sample."""
    return torch.stack(rows + [rows[0]] * (bucket - len(rows)))
