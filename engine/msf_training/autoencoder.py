"""Trains the autoencoder so that its latents factorize well.

Beside reconstruction it learns two things that the factorization needs: to decode `up(down(z))` to the low-passed
image (scale-equivariant regularisation), and to put little energy into the residual (a direct penalty on its share).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.factorization import decompose, down, up
from msf_training.data import Split

Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]  # images in [-1, 1] and their labels to images


@dataclass(frozen=True)
class AutoencoderObjective:
    """Weights of the loss's terms, and the batch."""

    batch_size: int = 64
    gradient_weight: float = 0.5
    kl_weight: float = 5e-4
    low_pass_weight: float = 0.25
    low_pass_fraction: float = 0.25  # of each batch
    residual_share_weight: float = 0.05


def low_pass(images: Tensor) -> Tensor:
    """What an image looks like at half its resolution, at its own size."""
    half = F.avg_pool2d(images, 2)
    return F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)


def residual_share(latents: Tensor) -> Tensor:
    """The part of the latents' variance (over the batch, per channel, summed) that the residual holds: a scalar."""
    base, residual = decompose(latents)
    residual_energy = residual.square().mean(dim=(0, 2, 3)).sum() / 4  # orthonormal: 4 positions a block
    base_energy = base.var(dim=(0, 2, 3), correction=0).sum()
    return residual_energy / (residual_energy + base_energy)


def reconstruction_loss(output: Tensor, target: Tensor, gradient_weight: float) -> Tensor:
    """L1 of the pixels plus L1 of their horizontal and vertical differences."""
    difference = output - target
    gradient = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + gradient_weight * gradient


def autoencoder_loss(
    autoencoder: Autoencoder,
    data: Split,
    objective: AutoencoderObjective,
    generator: torch.Generator,
    augment: Augment | None = None,
) -> Mapping[str, Tensor]:
    """One batch's loss and its parts."""
    device = next(autoencoder.parameters()).device
    images, labels = data.batch(torch.randint(len(data), (objective.batch_size,), generator=generator))
    images = (augment(images, labels, generator) if augment else images).to(device)
    num_low = int(objective.batch_size * objective.low_pass_fraction)
    with torch.autocast(device.type, torch.bfloat16):
        posterior = autoencoder.posterior(images)
        mean, std = posterior.mean.float(), posterior.std.float()
        latents = mean + std * torch.randn(mean.shape, generator=generator).to(device)
        low = up(down(latents[:num_low]))
        decoded = autoencoder.decode(torch.cat((latents, low))).float()
    output, output_low = torch.split(decoded, [len(images), num_low])
    reconstruction = reconstruction_loss(output, images, objective.gradient_weight)
    equivariance = reconstruction_loss(output_low, low_pass(images[:num_low]), objective.gradient_weight)
    kl = posterior.kl().float().mean() / mean[0].numel()
    share = residual_share(mean)
    loss = (
        reconstruction
        + objective.low_pass_weight * equivariance
        + objective.kl_weight * kl
        + objective.residual_share_weight * share
    )
    return {"loss": loss, "reconstruction": reconstruction, "low": equivariance, "kl": kl, "share": share}
