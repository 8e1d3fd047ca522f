"""The MSF model: an autoencoder, two denoisers, and the modules that plans are compiled from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msf_serve.engine.autoencoder import Autoencoder
from msf_serve.engine.config import ModelConfig, Stage, Statistics
from msf_serve.engine.denoiser import Denoiser
from msf_serve.engine.factorization import compose, decompose, up


class MsfModel(nn.Module):
    """The networks of one model version. Latents between its parts are normalised to unit variance."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.base = Denoiser(config.base.denoiser)
        self.residual = Denoiser(config.residual.denoiser)

    def denoiser(self, stage: Stage) -> Denoiser:
        return {Stage.BASE: self.base, Stage.RESIDUAL: self.residual}[stage]


class Normalizer(nn.Module):
    """Latents of one stage to unit variance and back: (B, C, h, w) both ways."""

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(statistics.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(statistics.std)[:, None, None])

    def normalize(self, latents: Tensor) -> Tensor:
        return (latents - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean


class StepModule(nn.Module):
    """One whole denoising step of one stage, for samples at any step, label and guidance scale.

    A guided step evaluates every sample twice, with its label and with the null label (classifier-free guidance,
    Ho & Salimans, arXiv 2207.12598).
    """

    def __init__(self, denoiser: Denoiser, *, guided: bool) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.guided = guided

    def forward(
        self,
        x: Tensor,
        d_prev: Tensor,
        cond: Tensor,
        time_embedding: Tensor,
        labels: Tensor,
        w: Tensor,
        a: Tensor,
        b: Tensor,
        c: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x, d_prev (B, C, h, w), cond (B, K, h, w), time_embedding (B, D), labels (B,), w, a, b, c (B,) -> (d, x')."""
        if self.guided:
            batch = x.shape[0]
            both = (torch.cat((labels, torch.full_like(labels, self.denoiser.null_label))),)
            velocity = self.denoiser(_twice(x), _twice(time_embedding), *both, _twice(cond))
            given, null = velocity.view(2, batch, *velocity.shape[1:]).unbind(0)
            d = null + _per_row(w) * (given - null)
        else:
            d = self.denoiser(x, time_embedding, labels, cond)
        return d, _per_row(a) * x + _per_row(b) * d + _per_row(c) * d_prev


class DecodeModule(nn.Module):
    """Normalised base (B, C, h, w) and residual (B, 3C, h, w) to pixels (B, H, W, channels) uint8."""

    def __init__(self, model: MsfModel) -> None:
        super().__init__()
        self.autoencoder = model.autoencoder
        self.base = Normalizer(model.config.base.statistics)
        self.residual = Normalizer(model.config.residual.statistics)

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return self.pixels(compose(self.base.restore(base), self.residual.restore(residual)))

    def preview(self, base: Tensor) -> Tensor:
        """What the base alone shows: decode(up(base))."""
        return self.pixels(up(self.base.restore(base)))

    def pixels(self, latents: Tensor) -> Tensor:
        images = self.autoencoder.decode(latents).float()
        levels = ((images + 1) * 127.5).round().clamp(0, 255)
        return levels.permute(0, 2, 3, 1).to(torch.uint8)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, channels, H, W) in [-1, 1] to normalised base and residual."""
        base, residual = decompose(self.autoencoder.posterior(images).mean)
        return self.base.normalize(base), self.residual.normalize(residual)


def _twice(x: Tensor) -> Tensor:
    return x.unsqueeze(0).expand(2, *x.shape).reshape(2 * x.shape[0], *x.shape[1:])


def _per_row(x: Tensor) -> Tensor:
    return x[:, None, None, None]
