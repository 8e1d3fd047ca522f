"""Trains the denoisers by flow matching (Lipman et al., arXiv 2210.02747): linear interpolant, velocity target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import Statistics
from msf_engine.denoiser import Denoiser
from msf_engine.factorization import decompose
from msf_training.data import Split


@dataclass(frozen=True)
class DenoiserObjective:
    """The batch, and how times, labels and conditions are drawn."""

    batch_size: int = 256
    label_drop: float = 0.1
    uniform_time_fraction: float = 0.2  # the other times are logit-normal (arXiv 2403.03206)
    max_conditioning_noise: float = 0.5
    named_fraction: float = 0.0  # of the samples whose picture has a label of its own: told that, not the class's


@dataclass(frozen=True)
class Latents:
    """A data set's latents, factorized and normalised: base (N, C, h, w), residual (N, 3C, h, w), labels (N,).

    They are drawn in proportion to `weights` (N,), where these are given. `own_labels` (N,) are pictures' own labels,
    beside those of their classes; -1: it has none.
    """

    base: Tensor
    residual: Tensor
    labels: Tensor
    base_statistics: Statistics
    residual_statistics: Statistics
    weights: Tensor | None = None
    own_labels: Tensor | None = None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Indices (count,)."""
        if self.weights is None:
            return torch.randint(len(self.labels), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def labels_of(self, indices: Tensor, named_fraction: float, generator: torch.Generator) -> Tensor:
        """The classes' labels, or, of so many of those that have them, their own: (len(indices),)."""
        labels = self.labels[indices]
        if self.own_labels is None or not named_fraction:
            return labels
        own = self.own_labels[indices]
        named = (torch.rand(len(indices), generator=generator) < named_fraction) & (own >= 0)
        return torch.where(named, own, labels)


Vary = Callable[[Tensor, Tensor, int], Tensor]  # images in [-1, 1], their labels and a variant's number to images


@torch.no_grad()
def encode_latents(
    autoencoder: Autoencoder, data: Split, batch_size: int = 500, num_variants: int = 1, vary: Vary | None = None
) -> Latents:
    """Encode a whole split (the posteriors' means), each of its variants once, and measure what normalises it."""
    device = next(autoencoder.parameters()).device
    parts = []
    for variant in range(num_variants):
        for indices in torch.split(torch.arange(len(data)), batch_size):
            images, labels = data.batch(indices)
            images = vary(images, labels, variant) if vary else images
            parts.append([part.cpu() for part in decompose(autoencoder.posterior(images.to(device)).mean)])
    base, residual = (torch.cat(stage) for stage in zip(*parts, strict=True))
    base_statistics, residual_statistics = _measure(base), _measure(residual)
    return Latents(
        base=normalize(base, base_statistics),
        residual=normalize(residual, residual_statistics),
        labels=data.labels.repeat(num_variants),
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
    indices = latents.draw(objective.batch_size, generator)
    clean = latents.base[indices].float()
    labels = latents.labels_of(indices, objective.named_fraction, generator)
    labels = _drop_labels(labels, denoiser.null_label, objective.label_drop, generator)
    return _flow_matching(denoiser, clean, labels, None, objective, generator)


def residual_loss(
    denoiser: Denoiser, latents: Latents, objective: DenoiserObjective, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Flow matching on the residual, given a base blurred by noise of a level that the network is told.

    Noise-conditioning augmentation (Ho et al., arXiv 2106.15282): generated bases are not perfect, real ones are.
    """
    indices = latents.draw(objective.batch_size, generator)
    clean, base = latents.residual[indices].float(), latents.base[indices].float()
    labels = latents.labels_of(indices, objective.named_fraction, generator)
    labels = _drop_labels(labels, denoiser.null_label, objective.label_drop, generator)
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
    device = next(denoiser.parameters()).device
    time_embedding = denoiser.time(timesteps.to(device), level.to(device))
    with torch.autocast(device.type, torch.bfloat16):
        velocity = denoiser(noisy.to(device), time_embedding, labels.to(device), cond.to(device)).float()
    return {"loss": (velocity - (noise - clean).to(device)).square().mean()}


def _draw_times(count: int, uniform_fraction: float, generator: torch.Generator) -> Tensor:
    logit_normal = torch.randn(count, generator=generator).sigmoid()
    uniform = torch.rand(count, generator=generator)
    chosen = torch.rand(count, generator=generator) < uniform_fraction
    return torch.where(chosen, uniform, logit_normal)


def _drop_labels(labels: Tensor, null_label: int, probability: float, generator: torch.Generator) -> Tensor:
    dropped = torch.rand(len(labels), generator=generator) < probability
    return labels.masked_fill(dropped, null_label)
