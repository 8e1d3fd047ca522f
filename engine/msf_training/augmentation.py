"""Random flips and shifts of float images (B, C, H, W) in [-1, 1], where -1 is the background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Variation of training images. `may_flip` (num_classes,) bool; `sign` is -1 for images on white."""

    may_flip: Tensor
    shift_pixels: int
    sign: int

    def draw(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Flip half of the images that may be flipped, and shift all."""
        return self._shift(flip(images, self.may_flip[labels], generator), generator)

    def variant(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """Return the images themselves as variant 0; odd ones are flipped, those from 2 shifted."""
        if number % 2:
            images = torch.where(self.may_flip[labels][:, None, None, None], images.flip(-1), images)
        return self._shift(images, torch.Generator().manual_seed(number)) if number >= 2 else images

    def _shift(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.sign * shift(self.sign * images, self.shift_pixels, generator)


def shift(images: Tensor, max_pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by whole pixels, at most `max_pixels` along each axis."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (max_pixels,) * 4, value=-1.0)
    rows = torch.randint(2 * max_pixels + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * max_pixels + 1, (batch, 1), generator=generator) + torch.arange(width)
    samples = torch.arange(batch)[:, None, None]
    return padded.movedim(1, -1)[samples, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def flip(images: Tensor, may_flip: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images for which `may_flip` (B,) holds, left to right."""
    flipped = may_flip & (torch.rand(len(images), generator=generator) < 0.5)
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)
