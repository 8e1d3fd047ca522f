"""The autoencoder: diffusers' `AutoencoderKL` behind a space-to-depth step."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from msf_engine.config import AutoencoderConfig


class Autoencoder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to and from latents (B, c, H/f, W/f), f = `config.downsampling`."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.kl = AutoencoderKL(**config.kl)

    def posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Return the latent's distribution; its mean is the latent that the denoisers learn."""
        patches = F.pixel_unshuffle(images, self.patch_size)
        return self.kl.encode(patches).latent_dist

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to images, not clamped."""
        patches: Tensor = self.kl.decode(latents).sample
        return F.pixel_shuffle(patches, self.patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        return self.decode(latents)
