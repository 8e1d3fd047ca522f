"""How the evaluation asks a model for images: a sampler's interface, and the settings it is asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

CHUNK_SIZE = 160  # images a call: 16 of each class, and whole buckets

_SETTING = re.compile(r"(\d+)\+(\d+)@(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?")


class ImageSampler(Protocol):
    """A two-stage model. Latents are in whatever units the sampler likes; images are uint8 (N, 1, 32, 32)."""

    def base(self, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        """Labels (N,) to base latents (N, C, h, w)."""
        ...

    def residual(self, base: Tensor, labels: Tensor, *, num_steps: int, guidance_scale: float, seed: int) -> Tensor:
        """Base latents (N, C, h, w) and labels (N,) to residual sub-bands (N, 3C, h, w)."""
        ...

    def decode(self, base: Tensor, residual: Tensor | None) -> Tensor:
        """Latents to images; without a residual, those of the base alone."""
        ...

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images to base and residual."""
        ...


@dataclass(frozen=True)
class Setting:
    """Steps and guidance scale of each stage, written `16+4@1.5` or, with a scale for each, `16+4@1.5/1`."""

    base_steps: int
    residual_steps: int
    base_guidance: float
    residual_guidance: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError that shows the syntax."""
        match = _SETTING.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"setting {text!r} must look like 16+4@1.5 or 16+4@1.5/1 (base+residual steps@guidance)")
        base_steps, residual_steps = int(match[1]), int(match[2])
        if min(base_steps, residual_steps) < 1:
            raise ValueError(f"setting {text!r}: each stage needs at least 1 step")
        return cls(base_steps, residual_steps, float(match[3]), float(match[4] or match[3]))

    def __str__(self) -> str:
        scales = dict.fromkeys(f"{scale:g}" for scale in (self.base_guidance, self.residual_guidance))
        return f"{self.base_steps}+{self.residual_steps}@{'/'.join(scales)}"

    @property
    def num_evaluations(self) -> int:
        """Network evaluations that an image costs: a guided step makes two."""
        return self.base_steps * (1 + (self.base_guidance != 1)) + self.num_residual_evaluations

    @property
    def num_residual_evaluations(self) -> int:
        return self.residual_steps * (1 + (self.residual_guidance != 1))


@dataclass(frozen=True)
class Samples:
    """What `generate` made of N labels: base (N, C, h, w), images (N, 1, 32, 32) uint8, the time it took."""

    base: Tensor
    images: Tensor
    wall_s: float


def generate(
    sampler: ImageSampler,
    labels: Tensor,
    setting: Setting,
    *,
    seed: int,
    on_images: Callable[[int], None],
    base: Tensor | None = None,
) -> Samples:
    """An image for each label; `base` replaces the base stage. `on_images` hears how many each chunk made."""
    started_at = time.monotonic()
    bases, images = [], []
    for number, indices in enumerate(torch.split(torch.arange(len(labels)), CHUNK_SIZE)):
        wanted, chunk_seed = labels[indices], seed + number
        if base is None:
            made = sampler.base(
                wanted, num_steps=setting.base_steps, guidance_scale=setting.base_guidance, seed=chunk_seed
            )
        else:
            made = base[indices]
        residual = sampler.residual(
            made,
            wanted,
            num_steps=setting.residual_steps,
            guidance_scale=setting.residual_guidance,
            seed=chunk_seed,
        )
        bases.append(made)
        images.append(sampler.decode(made, residual))
        on_images(len(wanted))
    return Samples(torch.cat(bases), torch.cat(images), time.monotonic() - started_at)


def decode_base(sampler: ImageSampler, base: Tensor) -> Tensor:
    """Images of the bases (N, C, h, w) alone."""
    return torch.cat([sampler.decode(part, None) for part in torch.split(base, CHUNK_SIZE)])


def encode_base(sampler: ImageSampler, images: Tensor) -> Tensor:
    """Bases (N, C, h, w) of images."""
    return torch.cat([sampler.encode(part)[0] for part in torch.split(images, CHUNK_SIZE)])


def reconstruct(sampler: ImageSampler, images: Tensor) -> Tensor:
    """Images through the autoencoder and back."""
    return torch.cat([sampler.decode(*sampler.encode(part)) for part in torch.split(images, CHUNK_SIZE)])
