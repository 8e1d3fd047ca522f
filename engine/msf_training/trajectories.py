"""Trajectories of a teacher: the states through which its sampler carries noise, for a flow map to learn from.

They need no images: noise, labels and guidance scales are drawn, and residuals are made for bases of the teacher. Each
file holds a batch of them, so that a stopped run does not make them again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from msf_engine.denoiser import Denoiser
from msf_engine.model import MsfModel
from msf_engine.sampling import latent_shape
from msf_engine.schedule import Floats, flow_schedule, flow_times
from msf_scheduler.stage import Stage

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
MAX_TIME_SHIFT = 2.0
LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class Trajectories:
    """T trajectories of a stage in N steps. `cond` (T, K, h, w) has no channels without a condition."""

    states: Tensor  # (T, N + 1, C, h, w)
    times: Tensor  # (T, N + 1), from 1 (noise) to 0
    labels: Tensor  # (T,)
    guidance_scales: Tensor  # (T,)
    cond: Tensor

    @property
    def num_steps(self) -> int:
        return self.times.shape[1] - 1

    @classmethod
    def join(cls, parts: Sequence[Trajectories]) -> Trajectories:
        """Concatenate trajectories with equal numbers of steps."""
        return cls(*(torch.cat(tensors) for tensors in zip(*(vars(part).values() for part in parts), strict=True)))

    def save(self, file: Path) -> None:
        """Write the trajectories; the file is complete or absent."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(vars(self), partial)
        os.replace(partial, file)

    @classmethod
    def load(cls, file: Path) -> Trajectories:
        """Read a file of `save`."""
        return cls(**torch.load(file, weights_only=True))


@dataclass(frozen=True)
class TrajectoryMaker:
    """Trajectories of a teacher's stages in `num_steps` steps, in files below `folder`.

    Labels are uniform, guidance scales from 1 to `max_guidance_scale`.
    """

    teacher: MsfModel
    folder: Path
    num_steps: int
    max_guidance_scale: float

    def make(self, stage: Stage, count: int) -> Trajectories:
        """Return `count` trajectories, rounded up to whole files. The base's must have been made before the residual's.

        Each process makes a part of the files that are missing.
        """
        rank, world_size = 0, 1
        if distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        files = [self._file(stage, number) for number in range(-(-count // BATCH_SIZE))]
        missing = [number for number in range(rank, len(files), world_size) if not files[number].exists()]
        started_at = logged_at = time.monotonic()
        for position, number in enumerate(missing, start=1):
            self._make_file(stage, number).save(files[number])
            now = time.monotonic()
            if now - logged_at > LOG_EVERY_S:
                remaining_s = (now - started_at) / position * (len(missing) - position)
                logger.info("%s trajectories %d/%d | %.0f min left", stage, number, len(files), remaining_s / 60)
                logged_at = now
        if distributed.is_initialized():
            distributed.barrier()
        return Trajectories.join([Trajectories.load(file) for file in files])

    def _file(self, stage: Stage, number: int) -> Path:
        return self.folder / f"{stage}-{number:05d}.pt"

    def _make_file(self, stage: Stage, number: int) -> Trajectories:
        """Make a batch that depends on its number alone."""
        config = self.teacher.config
        is_residual = stage is Stage.RESIDUAL
        generator = torch.Generator().manual_seed((int(is_residual) << 32) + number)
        schedule = flow_schedule(draw_times(self.num_steps, generator))
        level = 0.0
        if is_residual:
            base = Trajectories.load(self._file(Stage.BASE, number))
            labels, scales, level = base.labels, base.guidance_scales, config.conditioning_noise
            bases = base.states[:, -1]
            cond = torch.lerp(bases, torch.randn(bases.shape, generator=generator), level)
        else:
            labels = torch.randint(config.num_classes, (BATCH_SIZE,), generator=generator)
            scales = 1 + (self.max_guidance_scale - 1) * torch.rand(BATCH_SIZE, generator=generator)
            cond = torch.empty(BATCH_SIZE, 0, *latent_shape(config, stage)[1:])
        noise = torch.randn(BATCH_SIZE, *latent_shape(config, stage), generator=generator)
        steps = Steps(
            schedule.times.tolist(),
            schedule.updates(config.sampling.solver).tolist(),
            config.stage(stage).guidance.contains(schedule.noise_times).tolist(),
        )
        states = follow_teacher(self.teacher.denoiser(stage), steps, noise, labels, scales, cond, level)
        times = torch.tensor([[*steps.times, 0.0]]).expand(BATCH_SIZE, -1)
        return Trajectories(states, times, labels, scales, cond)


def draw_times(num_steps: int, generator: torch.Generator) -> Floats:
    """Return regular times or, half of the time, with a random shift: a flow map learns all times."""
    exponent, is_regular = torch.rand(2, generator=generator).tolist()
    return flow_times(num_steps, 1.0 if is_regular < 0.5 else MAX_TIME_SHIFT ** (2 * exponent - 1))


@dataclass(frozen=True)
class Steps:
    """Steps of a teacher: the time of each, its update a, b, c, and whether it is guided."""

    times: Sequence[float]
    updates: Sequence[Sequence[float]]
    guided: Sequence[bool]


@torch.no_grad()
def follow_teacher(
    teacher: Denoiser, steps: Steps, noise: Tensor, labels: Tensor, scales: Tensor, cond: Tensor, cond_level: float
) -> Tensor:
    """Return the states (B, N + 1, C, h, w) of noise (B, C, h, w), with a guidance scale for each sample (B,)."""
    device = next(teacher.parameters()).device
    x, labels, scales, cond = (tensor.to(device) for tensor in (noise, labels, scales[:, None, None, None], cond))
    null_labels = torch.full_like(labels, teacher.null_label)
    levels = torch.full((len(x),), cond_level, device=device)
    d_prev = torch.zeros_like(x)
    states = [x]
    for t, (a, b, c), is_guided in zip(steps.times, steps.updates, steps.guided, strict=True):
        embedding = teacher.time(torch.full_like(levels, t), levels)
        d = teacher(x, embedding, labels, cond)
        if is_guided:
            unconditional = teacher(x, embedding, null_labels, cond)
            d = unconditional + scales * (d - unconditional)
        x = a * x + b * d + c * d_prev
        d_prev = d
        states.append(x)
    return torch.stack(states, dim=1).cpu()
