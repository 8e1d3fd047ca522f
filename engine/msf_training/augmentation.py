"""Random changes to a batch of images, that leave what is seen recognisable.

None of them blurs on purpose or adds noise: a network trained to ignore those could not see them in generated
images. All take and return float images (B, C, H, W) in [-1, 1], where -1 is the background.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def shift(images: Tensor, max_pixels: int, generator: torch.Generator) -> Tensor:
    """Move each image by whole pixels (so without resampling it), its own way."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (max_pixels,) * 4, value=-1.0)
    rows = torch.randint(2 * max_pixels + 1, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(2 * max_pixels + 1, (batch, 1), generator=generator) + torch.arange(width)
    samples = torch.arange(batch)[:, None, None]
    return padded.movedim(1, -1)[samples, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def zoom(images: Tensor, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Show a window of each image at full size; height and width are scaled apart (below 1: magnified)."""
    low, high = scales
    scale = low + (high - low) * torch.rand(len(images), 2, generator=generator)
    center = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - scale).abs()
    theta = torch.cat((torch.diag_embed(scale), center[:, :, None]), dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Outside of the image grid_sample finds 0, which must be the background.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def brighten(images: Tensor, factors: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scale each image's brightness above the background."""
    low, high = factors
    factor = low + (high - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
    return ((images + 1) * factor - 1).clamp(max=1.0)


def tint(images: Tensor, factors: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scale each channel of each image apart, above the background."""
    low, high = factors
    factor = low + (high - low) * torch.rand(*images.shape[:2], 1, 1, generator=generator)
    return ((images + 1) * factor - 1).clamp(max=1.0)


def flip(images: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images that are `allowed` (B,) to be, left to right."""
    chosen = allowed & (torch.rand(len(images), generator=generator) < 0.5)
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def erase(images: Tensor, max_size: float, generator: torch.Generator) -> Tensor:
    """Set one rectangle of each image, each side up to `max_size` of the image's, to the background."""
    inside = [_interval(len(images), length, max_size, generator) for length in images.shape[2:]]
    rectangle = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(rectangle, -1.0)


def _interval(batch: int, length: int, max_size: float, generator: torch.Generator) -> Tensor:
    """A random interval of each row as a mask (batch, length)."""
    size = max_size * length * torch.rand(batch, 1, generator=generator)
    start = (length - size) * torch.rand(batch, 1, generator=generator)
    positions = torch.arange(length)[None] + 0.5
    return (positions > start) & (positions < start + size)
