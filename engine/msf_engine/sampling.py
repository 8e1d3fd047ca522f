"""The sampling loop: latents as a pure function of a network, trajectory, noise, condition and labels.

The executor advances samples that are at different steps; here all rows of a batch are at the same one. Both take their
steps from the same schedule and compute them in the same order, so that they make the same images to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.noise import NoiseKey, NoiseStream, flat_noise
from msf_engine.plan import Array
from msf_engine.schedule import Schedule, Solver
from msf_engine.step_table import embed_steps
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

Latents = NDArray[np.float32]
Network = Callable[[Sequence[Array]], Latents]
"""A denoiser: x (B, C, h, w), time embedding (B, D), labels (B,), any condition (B, K, h, w) to an output like x."""


@dataclass(frozen=True)
class Trajectory:
    """Inputs of a stage's N steps that do not depend on the sample.

    `time_embedding` (N, D), `guidance_scales` (N,), at 1 a step is unguided, `updates` (N, 3) = a, b, c. Guidance acts
    on the first `guided_channels`, or on all.
    """

    time_embedding: NDArray[np.float32]
    guidance_scales: NDArray[np.float32]
    updates: NDArray[np.float32]
    guided_channels: int | None = None


def make_trajectory(
    embed: HostTimeEmbedding,
    schedule: Schedule,
    guidance_scales: Array,
    *,
    solver: Solver,
    conditioning_noise: float,
    told_scale: float = 1.0,
    guided_channels: int | None = None,
) -> Trajectory:
    """Return the trajectory along a schedule with a guidance scale for each step; flow maps have `told_scale`."""
    embedding = embed_steps(embed, schedule, conditioning_noise, told_scale)
    updates = schedule.updates(solver).astype(np.float32)
    return Trajectory(embedding, guidance_scales.astype(np.float32), updates, guided_channels)


def stage_trajectory(
    config: ModelConfig, stage: Stage, embed: HostTimeEmbedding, num_steps: int, guidance_scale: float
) -> Trajectory:
    """Return a stage's trajectory as the model's config has it: its process, solver and guidance."""
    schedule, stage_config = config.process.schedule(num_steps), config.stage(stage)
    guidance = stage_config.guidance
    return make_trajectory(
        embed,
        schedule,
        np.where(guidance.contains(schedule.noise_times), guidance_scale, 1.0),
        solver=config.sampling.solver,
        conditioning_noise=stage_config.conditioning_noise,
        told_scale=config.told_scale(guidance_scale),
        guided_channels=guidance.channels,
    )


def sample(
    network: Network,
    trajectory: Trajectory,
    noise: Latents,
    labels: NDArray[np.int64],
    negative_labels: NDArray[np.int64] | int,
    cond: Latents | None = None,
) -> Latents:
    """Carry `noise` (B, C, h, w) along the trajectory to normalised latents (B, C, h, w).

    A guided step evaluates every sample twice, with its label and with the label to steer away from, by default the
    null label (classifier-free guidance, Ho & Salimans, arXiv 2207.12598). `labels` and `negative_labels` (B,), `cond`
    (B, K, h, w) if the stage has a condition.
    """
    x, d_prev = noise, np.zeros_like(noise)
    fixed = (labels,) if cond is None else (labels, cond)
    negative = (np.full_like(labels, negative_labels), *fixed[1:])
    for embedding, scale, (a, b, c) in zip(
        trajectory.time_embedding, trajectory.guidance_scales, trajectory.updates, strict=True
    ):
        moving = (x, np.tile(embedding, (len(x), 1)))
        if scale == 1:
            d = network((*moving, *fixed))
        else:
            rows = [np.concatenate(pair) for pair in zip((*moving, *fixed), (*moving, *negative), strict=True)]
            positive_rows, negative_rows = np.split(network(rows), 2)
            d = guide(positive_rows, negative_rows, scale, trajectory.guided_channels)
        x = advance(x, d, d_prev, a, b, c)
        d_prev = d
    return x


def guide(positive: Latents, negative: Latents, scale: Array | np.float32, channels: int | None = None) -> Latents:
    """Return the guided output (N, C, h, w), in float32; channels after the first `channels` are left unguided."""
    steered = np.asarray(negative[:, :channels] + scale * (positive[:, :channels] - negative[:, :channels]))
    return steered if channels is None else np.concatenate((steered, positive[:, channels:]), axis=1)


def advance(
    x: Latents,
    d: Latents,
    d_prev: Latents,
    a: Array | np.float32,
    b: Array | np.float32,
    c: Array | np.float32,
) -> Latents:
    """Return x' = a x + b d + c d_prev, in float32."""
    return np.asarray(a * x + b * d + c * d_prev)


def to_pixels(levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round grey levels as a decoder returns them, of any shape. NaN is black."""
    rounded = np.rint(levels)
    np.clip(np.nan_to_num(rounded, copy=False), 0, 255, out=rounded)
    return rounded.astype(np.uint8)


def latent_shape(config: ModelConfig, stage: Stage) -> tuple[int, int, int]:
    """Return (C, h, w) of a stage's latents."""
    denoiser = config.stage(stage).denoiser
    return denoiser.in_channels, denoiser.size, denoiser.size


@dataclass(frozen=True)
class SampleNoise:
    """All noise of some samples: `stages` (B, C, h, w), in order, that each denoising stage starts from.

    The condition of a second stage is the result of the first, mixed with `condition`, of the same shape.
    """

    stages: tuple[Latents, ...]
    condition: Latents | None

    @classmethod
    def of(cls, config: ModelConfig, seeds: Sequence[int], indices: Sequence[int]) -> SampleNoise:
        """Compute the noise of the samples that (seed, index) name."""
        shapes = [latent_shape(config, stage) for stage in config.denoising_stages]
        num_stages = len(shapes)
        shapes += shapes[:1] * (num_stages - 1)
        streams = [*(NoiseStream.BASE, NoiseStream.RESIDUAL)[:num_stages], NoiseStream.CONDITION][: len(shapes)]
        sizes = [int(np.prod(shape)) for shape in shapes]
        keys = [
            (NoiseKey(seed, index, stream), size)
            for seed, index in zip(seeds, indices, strict=True)
            for stream, size in zip(streams, sizes, strict=True)
        ]
        parts = np.split(flat_noise(keys).reshape(len(seeds), -1), np.cumsum(sizes)[:-1], axis=1)
        noise = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return cls(tuple(noise[:num_stages]), noise[num_stages] if len(noise) > num_stages else None)

    def __len__(self) -> int:
        return len(self.stages[0])

    def rows(self, positions: Sequence[int]) -> SampleNoise:
        """Return the noise of some of the samples."""
        rows = list(positions)
        condition = None if self.condition is None else self.condition[rows]
        return SampleNoise(tuple(stage[rows] for stage in self.stages), condition)


def noisy_condition(config: ModelConfig, latents: Latents, noise: Latents) -> Latents:
    """Return the last stage's condition: the stage before (B, C, h, w) mixed with noise at the level of the config."""
    return np.asarray(latents + np.float32(config.conditioning_noise) * (noise - latents))


def blank_latents(config: ModelConfig) -> Latents:
    """Return what the last stage adds nothing by, (C, 1, 1): no detail to the stage before, or else the mean latent."""
    last = config.stages[-1]
    mean, std = (np.array(values, np.float32) for values in (last.statistics.mean, last.statistics.std))
    return (-mean / std if last.denoiser.cond_channels else np.zeros_like(mean))[:, None, None]
