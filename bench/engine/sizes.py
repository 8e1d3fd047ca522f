"""Model sizes to compare: DiT's S, B, L and XL (Peebles & Xie, arXiv 2212.09748, table 1).

`MSF-<size>/2` has two denoisers of that size with patches of 2 on a grid of half the latent's side; `DiT-<size>/2` is
the single-stage baseline, the same code with one stage and patches of 2 on the whole latent. Weights are random: the
time of a step does not depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from msf_engine.denoiser import SIZES as WIDTH_DEPTH_HEADS
from msf_engine.denoiser import Denoiser
from msf_engine.denoiser_config import DenoiserVariant, TimeConfig
from msf_scheduler.stage import Stage

LATENT_CHANNELS = 4
DOWNSAMPLING = 8
NUM_CLASSES = 1000
_TIME, _VARIANT = TimeConfig(), DenoiserVariant()


@dataclass(frozen=True)
class DenoiserSize:
    """Fields of `msf_engine.config.DenoiserConfig`, with the defaults of a benchmark."""

    in_channels: int
    cond_channels: int
    size: int
    width: int
    depth: int
    num_heads: int
    patch_size: int = 2
    mlp_ratio: float = 4.0
    num_classes: int = NUM_CLASSES
    time: TimeConfig = _TIME
    variant: DenoiserVariant = _VARIANT

    @property
    def num_tokens(self) -> int:
        return (self.size // self.patch_size) ** 2


SIZES = tuple(WIDTH_DEPTH_HEADS)


def msf_size(name: str, stage: Stage, image_size: int = 256) -> DenoiserSize:
    """Return the size of a denoiser of MSF-`name`/2 for square images of `image_size` pixels."""
    half = image_size // DOWNSAMPLING // 2
    channels, cond = {Stage.BASE: (LATENT_CHANNELS, 0), Stage.RESIDUAL: (3 * LATENT_CHANNELS, LATENT_CHANNELS)}[stage]
    return DenoiserSize(channels, cond, half, *WIDTH_DEPTH_HEADS[name])


def dit_size(name: str, image_size: int = 256) -> DenoiserSize:
    """Return the size of the denoiser of DiT-`name`/2, the single-stage baseline."""
    return DenoiserSize(LATENT_CHANNELS, 0, image_size // DOWNSAMPLING, *WIDTH_DEPTH_HEADS[name])


def random_denoiser(size: DenoiserSize, seed: int = 0) -> Denoiser:
    """Return a denoiser without zero weights: a compiler could optimize an untrained adaLN-Zero network away."""
    torch.manual_seed(seed)
    denoiser = Denoiser(size).eval().requires_grad_(False)
    fill_zeros(denoiser)
    return denoiser


def fill_zeros(module: nn.Module) -> None:
    """Replace parameters of zeros by small random ones."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
