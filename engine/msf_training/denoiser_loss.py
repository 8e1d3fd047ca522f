"""Losses of the denoisers: flow matching (Lipman et al., arXiv 2210.02747), linear interpolant, velocity target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_engine.denoiser import Denoiser
from msf_training.latents import Latents
from msf_training.mixed_precision import autocast


@dataclass(frozen=True)
class DenoiserObjective:
    """Batch size, and the distributions of times, labels and conditions."""

    batch_size: int = 256
    label_drop: float = 0.1
    uniform_time_fraction: float = 0.2  # the other times are logit-normal (arXiv 2403.03206)
    max_conditioning_noise: float = 0.5
    named_fraction: float = 0.0  # of the samples of named images: labelled with the name instead of the class


def denoiser_loss(
    denoiser: Denoiser, latents: Latents, objective: DenoiserObjective, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Return the flow-matching loss of one batch: of the last stage for a denoiser with a condition, else the first."""
    indices = latents.draw(objective.batch_size, generator)
    is_conditioned = denoiser.config.cond_channels > 0
    clean = latents.stages[-1 if is_conditioned else 0][indices].float()
    labels = latents.draw_labels(indices, objective.named_fraction, generator)
    labels = _drop_labels(labels, denoiser.null_label, objective.label_drop, generator)
    if is_conditioned:
        cond, level = _noisy_condition(latents.stages[0][indices].float(), objective.max_conditioning_noise, generator)
    else:
        cond, level = clean[:, :0], torch.zeros(len(clean))
    timesteps = _draw_timesteps(len(clean), objective.uniform_time_fraction, generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, timesteps[:, None, None, None])
    device = next(denoiser.parameters()).device
    time_embedding = denoiser.time(timesteps.to(device), level.to(device))
    with autocast(device):
        velocity = denoiser(noisy.to(device), time_embedding, labels.to(device), cond.to(device)).float()
    return {"loss": (velocity - (noise - clean).to(device)).square().mean()}


def _noisy_condition(base: Tensor, max_level: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each base (B, C, h, w) with noise of a random level (B,), which the network is given.

    Noise-conditioning augmentation (Ho et al., arXiv 2106.15282): generated bases are not perfect, real ones are.
    """
    level = torch.rand(len(base), generator=generator) * max_level
    noise = torch.randn(base.shape, generator=generator)
    return torch.lerp(base, noise, level[:, None, None, None]), level


def _draw_timesteps(count: int, uniform_fraction: float, generator: torch.Generator) -> Tensor:
    logit_normal = torch.randn(count, generator=generator).sigmoid()
    uniform = torch.rand(count, generator=generator)
    is_uniform = torch.rand(count, generator=generator) < uniform_fraction
    return torch.where(is_uniform, uniform, logit_normal)


def _drop_labels(labels: Tensor, null_label: int, probability: float, generator: torch.Generator) -> Tensor:
    dropped = torch.rand(len(labels), generator=generator) < probability
    return labels.masked_fill(dropped, null_label)
