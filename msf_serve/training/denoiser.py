"""Trains the denoisers by flow matching (Lipman et al., arXiv 2210.02747): linear interpolant, velocity target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_serve.engine.autoencoder import Autoencoder
from msf_serve.engine.config import Statistics
from msf_serve.engine.denoiser import Denoiser
from msf_serve.engine.factorization import decompose
from msf_serve.training.data import Split


@dataclass(frozen=True)
class DenoiserObjective:
    """The batch, and how times, labels and conditions are drawn."""

    batch_size: int = 256
    label_drop: float = 0.1
    uniform_time_fraction: float = 0.2  # the other times are logit-normal (arXiv 2403.03206)
    max_conditioning_noise: float = 0.5


@dataclass(frozen=True)
class Latents:
    """A data set's latents, factorized and normalised: base (N, C, h, w), residual (N, 3C, h, w), labels (N,)."""

    base: Tensor
    residual: Tensor
    labels: Tensor
    base_statistics: Statistics
    residual_statistics: Statistics


@torch.no_grad()
def encode_latents(autoencoder: Autoencoder, data: Split, batch_size: int = 500) -> Latents:
    """Encode a whole split once (the posteriors' means), and measure the statistics that normalise it."""
    parts = [
        decompose(autoencoder.posterior(data.batch(indices)[0]).mean)
        for indices in torch.split(torch.arange(len(data)), batch_size)
    ]
    base, residual = (torch.cat(stage) for stage in zip(*parts, strict=True))
    base_statistics, residual_statistics = _measure(base), _measure(residual)
    return Latents(
        base=normalize(base, base_statistics),
        residual=normalize(residual, residual_statistics),
        labels=data.labels,
        base_statistics=base_statistics,
        residual_statistics=residual_statistics,
    )


def normalize(latents: Tensor, statistics: Statistics) -> Tensor:
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    return (latents - mean[:, None, None]) / std[:, None, None]


def _measure(latents: Tensor) -> Statistics:
    """Rounded as the config stores them, so that training and serving use the same numbers."""
    return Statistics(
        mean=tuple(round(value, 6) for value in latents.mean((0, 2, 3)).tolist()),
        std=tuple(round(value, 6) for value in latents.std((0, 2, 3)).tolist()),
    )


def base_loss(
    denoiser: Denoiser, latents: Latents, objective: DenoiserObjective, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Flow matching on the base."""
    indices = torch.randint(len(latents.labels), (objective.batch_size,), generator=generator)
    clean = latents.base[indices]
    labels = _drop_labels(latents.labels[indices], denoiser.null_label, objective.label_drop, generator)
    return _flow_matching(denoiser, clean, labels, None, objective, generator)


def residual_loss(
    denoiser: Denoiser, latents: Latents, objective: DenoiserObjective, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Flow matching on the residual, given a base blurred by noise of a level that the network is told.

    Noise-conditioning augmentation (Ho et al., arXiv 2106.15282): generated bases are not perfect, real ones are.
    """
    indices = torch.randint(len(latents.labels), (objective.batch_size,), generator=generator)
    clean, base = latents.residual[indices], latents.base[indices]
    labels = _drop_labels(latents.labels[indices], denoiser.null_label, objective.label_drop, generator)
    level = torch.rand(len(clean), generator=generator) * objective.max_conditioning_noise
    noise = torch.randn(base.shape, generator=generator)
    cond = torch.lerp(base, noise, level[:, None, None, None])
    return _flow_matching(denoiser, clean, labels, (cond, level), objective, generator)


def _flow_matching(
    denoiser: Denoiser,
    clean: Tensor,
    labels: Tensor,
    condition: tuple[Tensor, Tensor] | None,
    objective: DenoiserObjective,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    timesteps = _draw_times(len(clean), objective.uniform_time_fraction, generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = torch.lerp(clean, noise, timesteps[:, None, None, None])
    cond, level = condition or (clean.new_empty(len(clean), 0, *clean.shape[2:]), torch.zeros(len(clean)))
    time_embedding = denoiser.time(timesteps, level)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = denoiser(noisy, time_embedding, labels, cond).float()
    return {"loss": (velocity - (noise - clean)).square().mean()}


def _draw_times(count: int, uniform_fraction: float, generator: torch.Generator) -> Tensor:
    logit_normal = torch.randn(count, generator=generator).sigmoid()
    uniform = torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < uniform_fraction
    return torch.where(chosen, uniform, logit_normal)


def _drop_labels(labels: Tensor, null_label: int, probability: float, generator: torch.Generator) -> Tensor:
    dropped = torch.rand(len(labels), generator=generator) < probability
    return labels.masked_fill(dropped, null_label)
