"""Random changes of a batch of images that keep its content recognisable.

None of them blurs or adds noise: a feature network trained to ignore those could not see them in generated images.
All take and return float images (B, C, H, W) in [-1, 1], where -1 is the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Flips and shifts of training images. `may_flip` (num_classes,) bool; `sign` -1 for images on white."""

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


def zoom(images: Tensor, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Show a window of each image at full size; height and width are scaled independently (below 1: magnified)."""
    low, high = scales
    scale = low + (high - low) * torch.rand(len(images), 2, generator=generator)
    center = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - scale).abs()
    theta = torch.cat((torch.diag_embed(scale), center[:, :, None]), dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # grid_sample pads with 0, which must be the background.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def brighten(images: Tensor, factors: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scale each image's brightness above the background."""
    low, high = factors
    factor = low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
    return ((images + 1) * factor - 1).clamp(max=1.0)


def tint(images: Tensor, factors: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scale each channel of each image independently, above the background."""
    low, high = factors
    factor = low + (high - low) * torch.rand(*images.shape[:2], 1, 1, generator=generator)
    return ((images + 1) * factor - 1).clamp(max=1.0)


def flip(images: Tensor, may_flip: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images for which `may_flip` (B,) holds, left to right."""
    flipped = may_flip & (torch.rand(len(images), generator=generator) < 0.5)
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def erase(images: Tensor, max_size: float, generator: torch.Generator) -> Tensor:
    """Set one rectangle of each image to the background; its sides are at most `max_size` of the image's."""
    rows, columns = (_interval(len(images), length, max_size, generator) for length in images.shape[2:])
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], -1.0)


def _interval(batch: int, length: int, max_size: float, generator: torch.Generator) -> Tensor:
    """Return a random interval of each row as a mask (batch, length)."""
    size = max_size * length * torch.rand(batch, 1, generator=generator)
    start = (length - size) * torch.rand(batch, 1, generator=generator)
    positions = torch.arange(length)[None] + 0.5
    return (positions > start) & (positions < start + size)
