"""Labelled images, and their pixels as uint8 and as float."""

from __future__ import annotations

import torch
from torch import Tensor


class Split:
    """Images (N, C, H, W) uint8 with labels (N,) int64; with `rows`, those rows of both, read on demand."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.all_images = images
        self.rows = torch.arange(len(labels)) if rows is None else rows
        self.labels = labels if rows is None else labels[rows]

    @property
    def images(self) -> Tensor:
        """All images of the split, read into memory."""
        return self.all_images[self.rows]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """Return the split of these images, read into memory."""
        return Split(self.all_images[self.rows[indices]], self.labels[indices])

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return images as float in [-1, 1], and their labels."""
        return to_unit_range(self.all_images[self.rows[indices]]), self.labels[indices]


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Convert float -1..1 to uint8 0..255, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
