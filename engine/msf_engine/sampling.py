"""The sampling loop: latents as a pure function of step plans, trajectory, noise, condition and labels.

The executor advances samples that are at different steps; here all rows of a batch are at the same one. Both take their
steps from a `Trajectory`, so that they make the same images to the byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_engine.config import ModelConfig
from msf_engine.denoiser import TimeEmbedding
from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Plan
from msf_engine.schedule import Solver, timesteps, updates
from msf_scheduler.stage import Stage

_NOISE_STREAM = {Stage.BASE: NoiseStream.BASE, Stage.RESIDUAL: NoiseStream.RESIDUAL}


@dataclass(frozen=True)
class Trajectory:
    """Inputs of a stage's N steps that do not depend on the sample, computed in float64 and kept in float32.

    `times` (N + 1) begin at 1 (noise) and end at 0; `time_embedding` is (N, D), `coefficients` (N, 4) = w, a, b, c.
    """

    times: tuple[float, ...]
    time_embedding: Tensor
    coefficients: Tensor
    guided: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.guided)


def make_trajectory(
    embed: TimeEmbedding,
    times: Sequence[float],
    guidance_scales: Sequence[float],
    *,
    solver: Solver,
    conditioning_noise: float,
) -> Trajectory:
    """Return the trajectory along `times` (N + 1) with a guidance scale for each step; 1 is unguided."""
    device = next(embed.parameters()).device
    levels = torch.full((len(guidance_scales),), conditioning_noise, device=device)
    with torch.inference_mode():
        time_embedding = embed(torch.tensor(times[:-1], dtype=torch.float64, device=device), levels)
    rows = [
        (w, update.a, update.b, update.c) for w, update in zip(guidance_scales, updates(solver, times), strict=True)
    ]
    coefficients = torch.tensor(rows, dtype=torch.float64).float()
    return Trajectory(tuple(times), time_embedding, coefficients, tuple(w != 1.0 for w in guidance_scales))


def stage_trajectory(
    config: ModelConfig, stage: Stage, embed: TimeEmbedding, num_steps: int, guidance_scale: float
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
    )


@torch.no_grad()
def sample(plans: Mapping[bool, Plan], trajectory: Trajectory, noise: Tensor, cond: Tensor, labels: Tensor) -> Tensor:
    """Carry `noise` (B, C, h, w) along the trajectory to normalised latents (B, C, h, w).

    `plans` of the stage's steps, guided and not: anything with the interface of `StepModule`, that module included;
    only those that the trajectory needs. `cond` (B, K, h, w; K may be 0), `labels` (B,).
    """
    x, d = noise, torch.zeros_like(noise)
    for time_embedding, coefficients, guided in zip(
        trajectory.time_embedding, trajectory.coefficients.to(noise.device), trajectory.guided, strict=True
    ):
        scalars = coefficients[:, None].repeat(1, len(x)).unbind(0)
        d, x = plans[guided](x, d, cond, time_embedding.repeat(len(x), 1), labels, *scalars)
    return x


def latent_shape(config: ModelConfig, stage: Stage) -> tuple[int, int, int]:
    """Return (C, h, w) of a stage's latents."""
    denoiser = config.stage(stage).denoiser
    return denoiser.in_channels, denoiser.size, denoiser.size


def initial_noise(config: ModelConfig, stage: Stage, *, seed: int, index: int) -> Tensor:
    """Return the noise (C, h, w) that a sample's stage starts from."""
    return gaussian_noise(latent_shape(config, stage), seed=seed, index=index, stream=_NOISE_STREAM[stage])


def noisy_condition(config: ModelConfig, base: Tensor, *, seed: int, index: int) -> Tensor:
    """Return the condition (K, h, w) of a sample's residual: its base, mixed with noise at the level of the config."""
    noise = gaussian_noise(tuple(base.shape), seed=seed, index=index, stream=NoiseStream.CONDITION)
    return torch.lerp(base, noise, config.conditioning_noise)
