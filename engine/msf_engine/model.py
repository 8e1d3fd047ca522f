"""The MSF model: an autoencoder, two denoisers, and the module that decodes latents to pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import LatentStatistics, ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.factorization import compose, decompose
from msf_scheduler.stage import Stage


class MsfModel(nn.Module):
    """The networks of one model version. Latents between its parts are normalised to unit variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.base = Denoiser(config.base.denoiser, is_flow_map=config.is_flow_map)
        self.residual = Denoiser(config.residual.denoiser, is_flow_map=config.is_flow_map)

    def denoiser(self, stage: Stage) -> Denoiser:
        return {Stage.BASE: self.base, Stage.RESIDUAL: self.residual}[stage]


class Normalizer(nn.Module):
    """Latents of one stage to unit variance and back: (B, C, h, w) both ways."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: LatentStatistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(statistics.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(statistics.std)[:, None, None])

    def normalize(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean


class DecodeModule(nn.Module):
    """Normalised base (B, C, h, w) and residual (B, 3C, h, w) to pixels (B, H, W, channels) uint8."""

    def __init__(self, model: MsfModel) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder
        self.base = Normalizer(model.config.base.statistics)
        self.residual = Normalizer(model.config.residual.statistics)

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return self.levels(base, residual).to(torch.uint8)

    def levels(self, base: Tensor, residual: Tensor) -> Tensor:
        """Return the same as whole numbers in float32, for compilers without uint8."""
        latents = compose(self.base.restore(base), self.residual.restore(residual))
        images = self.autoencoder.decode(latents).float()
        levels: Tensor = ((images + 1) * 127.5).round().clamp(0, 255)
        return levels.permute(0, 2, 3, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images (B, channels, H, W) in [-1, 1] to normalised base and residual."""
        base, residual = decompose(self.autoencoder.posterior(images).mean)
        return self.base.normalize(base), self.residual.normalize(residual)
