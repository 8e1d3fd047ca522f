"""Random changes of images (B, C, H, W) in [-1, 1] that the feature networks learn to ignore; -1 is the background.

None of them blurs or adds noise: the networks could then not see blur and noise in generated images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def zoom(images: Tensor, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Show a window of each image at full size; height and width are scaled independently (below 1: magnified)."""
    scale = _uniform(scales, (len(images), 2), generator)
    center = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - scale).abs()
    theta = torch.cat((torch.diag_embed(scale), center[:, :, None]), dim=2)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # grid_sample pads with 0, which must be the background.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def recolour(
    images: Tensor, brightness: tuple[float, float], tint: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Scale each image's brightness above the background, and each of its channels, by random factors."""
    factor = _uniform(brightness, (len(images), 1), generator) * _uniform(tint, images.shape[:2], generator)
    return ((images + 1) * factor[:, :, None, None] - 1).clamp(max=1.0)


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


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=generator)
