"""Loss of an autoencoder whose latents factorize well.

In addition to reconstruction it learns what the factorization needs: to decode `up(down(z))` to the low-passed image
(scale-equivariant regularisation), and to put little energy into the residual (a penalty on its share).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.factorization import decompose, down, up
from msf_training.augmentation import Augmentation
from msf_training.dataset import Split
from msf_training.mixed_precision import autocast


@dataclass(frozen=True)
class AutoencoderObjective:
    """Batch size and weights of the loss terms; `low_pass_fraction` is a part of each batch."""

    batch_size: int = 64
    gradient_weight: float = 0.5
    kl_weight: float = 5e-4
    low_pass_weight: float = 0.25
    low_pass_fraction: float = 0.25
    residual_share_weight: float = 0.05


def low_pass(images: Tensor) -> Tensor:
    """Return images (B, C, H, W) reduced to half their resolution and scaled back."""
    half = F.avg_pool2d(images, 2)
    return F.interpolate(half, scale_factor=2, mode="bilinear", align_corners=False)


def residual_share(latents: Tensor) -> Tensor:
    """Return the residual's part of the latents' variance, over the batch, summed over channels: a scalar."""
    base, residual = decompose(latents)
    residual_energy = residual.square().mean(dim=(0, 2, 3)).sum() / 4  # orthonormal: 4 positions a block
    base_energy = base.var(dim=(0, 2, 3), correction=0).sum()
    return residual_energy / (residual_energy + base_energy)


def reconstruction_loss(output: Tensor, target: Tensor, gradient_weight: float) -> Tensor:
    """Return the L1 of the pixels plus the weighted L1 of their horizontal and vertical differences."""
    difference = output - target
    gradient = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + gradient_weight * gradient


def autoencoder_loss(
    autoencoder: Autoencoder,
    data: Split,
    objective: AutoencoderObjective,
    generator: torch.Generator,
    augmentation: Augmentation | None = None,
) -> Mapping[str, Tensor]:
    """Return the loss of one batch and its terms."""
    device = next(autoencoder.parameters()).device
    images, labels = data.batch(torch.randint(len(data), (objective.batch_size,), generator=generator))
    images = (augmentation.draw(images, labels, generator) if augmentation else images).to(device)
    num_low = int(objective.batch_size * objective.low_pass_fraction)
    with autocast(device):
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
