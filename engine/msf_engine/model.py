"""The networks of a model: an autoencoder, a denoiser for each stage, and the module that decodes latents to pixels."""

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
        for stage in config.stages:
            self.add_module(stage.name, Denoiser(stage.denoiser, is_flow_map=config.is_flow_map))

    def denoiser(self, stage: Stage) -> Denoiser:
        """Return the denoiser of a stage, which is the submodule of its name."""
        denoiser = self.get_submodule(stage)
        assert isinstance(denoiser, Denoiser)
        return denoiser


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
    """Normalised base (B, C, h, w) and residual (B, 3C, h, w) to grey levels (B, H, W, channels) in float32.

    The latents of a one-stage model are in the place of the base, and there is no residual. Black is 0 and white 255;
    levels are neither rounded nor clipped, so that validation sees differences which rounding hides.
    """

    def __init__(self, model: MsfModel) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder
        self.base, *rest = (Normalizer(stage.statistics) for stage in model.config.stages)
        self.residual = rest[0] if rest else None

    def forward(self, base: Tensor, residual: Tensor | None = None) -> Tensor:
        images: Tensor = self.autoencoder.decode(self.restore(base, residual)).float()
        return ((images + 1) * 127.5).permute(0, 2, 3, 1)

    def pixels(self, base: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the image (B, H, W, channels) as uint8."""
        levels: Tensor = self(base, residual)
        return levels.round().clamp(0, 255).to(torch.uint8)

    def restore(self, base: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the autoencoder's latents (B, C, H, W)."""
        latents = self.base.restore(base)
        if self.residual is None or residual is None:
            return latents
        return compose(latents, self.residual.restore(residual))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images (B, channels, H, W) in [-1, 1] to the normalised latents of each stage."""
        latents: Tensor = self.autoencoder.posterior(images).mean
        if self.residual is None:
            return (self.base.normalize(latents),)
        base, residual = decompose(latents)
        return self.base.normalize(base), self.residual.normalize(residual)
