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
from msf_engine.schedule import Solver, Update, timesteps, updates
from msf_engine.step_table import embed_steps
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

Latents = NDArray[np.float32]
Network = Callable[[Sequence[Array]], Latents]
"""A denoiser: x (B, C, h, w), time embedding (B, D), labels (B,), any condition (B, K, h, w) to velocity like x."""


@dataclass(frozen=True)
class Trajectory:
    """Inputs of a stage's N steps that do not depend on the sample.

    `times` (N + 1) begin at 1 (noise) and end at 0; `time_embedding` is (N, D); at scale 1 a step is unguided.
    """

    times: tuple[float, ...]
    time_embedding: NDArray[np.float32]
    guidance_scales: tuple[float, ...]
    updates: tuple[Update, ...]


def make_trajectory(
    embed: HostTimeEmbedding,
    times: Sequence[float],
    guidance_scales: Sequence[float],
    *,
    solver: Solver,
    conditioning_noise: float,
    told_scale: float = 1.0,
) -> Trajectory:
    """Return the trajectory along `times` (N + 1) with a guidance scale for each step; flow maps have `told_scale`."""
    embedding = embed_steps(embed, times, conditioning_noise, told_scale)
    return Trajectory(tuple(times), embedding, tuple(guidance_scales), updates(solver, times))


def stage_trajectory(
    config: ModelConfig, stage: Stage, embed: HostTimeEmbedding, num_steps: int, guidance_scale: float
) -> Trajectory:
    """Return a stage's trajectory as the model's config has it: its time shift, solver and interval of guidance."""
    times = timesteps(num_steps, config.sampling.time_shift)
    guidance = config.stage(stage).guidance
    return make_trajectory(
        embed,
        times,
        [guidance.scale_at(t, guidance_scale) for t in times[:-1]],
        solver=config.sampling.solver,
        conditioning_noise=config.conditioning_noise,
        told_scale=config.told_scale(guidance_scale),
    )


def sample(
    network: Network,
    trajectory: Trajectory,
    noise: Latents,
    labels: NDArray[np.int64],
    null_label: int,
    cond: Latents | None = None,
) -> Latents:
    """Carry `noise` (B, C, h, w) along the trajectory to normalised latents (B, C, h, w).

    A guided step evaluates every sample twice, with its label and with the null label (classifier-free guidance,
    Ho & Salimans, arXiv 2207.12598). `labels` (B,), `cond` (B, K, h, w) if the stage has a condition.
    """
    x, d_prev = noise, np.zeros_like(noise)
    fixed = (labels,) if cond is None else (labels, cond)
    null = (np.full_like(labels, null_label), *fixed[1:])
    for embedding, scale, update in zip(
        trajectory.time_embedding, trajectory.guidance_scales, trajectory.updates, strict=True
    ):
        moving = (x, np.tile(embedding, (len(x), 1)))
        if np.float32(scale) == 1:
            d = network((*moving, *fixed))
        else:
            rows = [np.concatenate(pair) for pair in zip((*moving, *fixed), (*moving, *null), strict=True)]
            conditional, unconditional = np.split(network(rows), 2)
            d = guide(conditional, unconditional, np.float32(scale))
        x = advance(x, d, d_prev, np.float32(update.a), np.float32(update.b), np.float32(update.c))
        d_prev = d
    return x


def guide(conditional: Latents, unconditional: Latents, scale: Array | np.float32) -> Latents:
    """Return the guided velocity, in float32."""
    return np.asarray(unconditional + scale * (conditional - unconditional))


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


def latent_shape(config: ModelConfig, stage: Stage) -> tuple[int, int, int]:
    """Return (C, h, w) of a stage's latents."""
    denoiser = config.stage(stage).denoiser
    return denoiser.in_channels, denoiser.size, denoiser.size


@dataclass(frozen=True)
class SampleNoise:
    """All noise of some samples: `base` (B, C, h, w), `residual` (B, 3C, h, w), and `condition` (B, C, h, w).

    The residual's condition is the base, mixed with `condition`.
    """

    base: Latents
    residual: Latents
    condition: Latents

    @classmethod
    def of(cls, config: ModelConfig, seeds: Sequence[int], indices: Sequence[int]) -> SampleNoise:
        """Compute the noise of the samples that (seed, index) name."""
        base, residual = (latent_shape(config, stage) for stage in (Stage.BASE, Stage.RESIDUAL))
        shapes = {NoiseStream.BASE: base, NoiseStream.RESIDUAL: residual, NoiseStream.CONDITION: base}
        sizes = {stream: int(np.prod(shape)) for stream, shape in shapes.items()}
        keys = [
            (NoiseKey(seed, index, stream), size)
            for seed, index in zip(seeds, indices, strict=True)
            for stream, size in sizes.items()
        ]
        parts = np.split(flat_noise(keys).reshape(len(seeds), -1), np.cumsum(list(sizes.values()))[:-1], axis=1)
        return cls(*(part.reshape(-1, *shape) for part, shape in zip(parts, shapes.values(), strict=True)))

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, positions: Sequence[int]) -> SampleNoise:
        """Return the noise of some of the samples."""
        rows = list(positions)
        return SampleNoise(self.base[rows], self.residual[rows], self.condition[rows])


def noisy_condition(config: ModelConfig, base: Latents, noise: Latents) -> Latents:
    """Return the residual's condition: the base (B, C, h, w) mixed with noise at the level of the config."""
    return np.asarray(base + np.float32(config.conditioning_noise) * (noise - base))
