"""Fashion-MNIST (Xiao et al., arXiv 1708.07747) as Debian's `dataset-fashion-mnist` ships it."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
NUM_HELD_OUT = 10_000  # the last training images: settings are chosen on them, never trained on


class Split:
    """`images` (N, C, H, W) uint8, `labels` (N,) int64; or those of their `rows` alone, read when asked for."""

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.all_images = images
        self.rows = rows
        self.labels = labels if rows is None else labels[rows]

    @property
    def images(self) -> Tensor:
        return self.all_images if self.rows is None else self.all_images[self.rows]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images as float in [-1, 1], and their labels."""
        rows = indices if self.rows is None else self.rows[indices]
        return to_unit_range(self.all_images[rows]), self.labels[indices]


@dataclass(frozen=True)
class FashionMnist:
    """50,000 images to train on, 10,000 to choose settings on, 10,000 to report on."""

    train: Split
    held_out: Split
    test: Split


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float -1..1 to uint8 0..255, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_fashion_mnist(folder: Path) -> FashionMnist:
    """Read the four IDX files below `folder`. Raises FileNotFoundError that says how to fetch them."""
    training = _load_split(folder, "train")
    return FashionMnist(
        train=Split(training.images[:-NUM_HELD_OUT], training.labels[:-NUM_HELD_OUT]),
        held_out=Split(training.images[-NUM_HELD_OUT:], training.labels[-NUM_HELD_OUT:]),
        test=_load_split(folder, "t10k"),
    )


def _load_split(folder: Path, prefix: str) -> Split:
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte.gz", header_size=16).reshape(-1, 1, 28, 28)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte.gz", header_size=8)
    return Split(images=F.pad(images, (2, 2, 2, 2)), labels=labels.long())


def _read_idx(folder: Path, name: str, *, header_size: int) -> Tensor:
    matches = sorted(folder.rglob(name))
    if not matches:
        raise FileNotFoundError(f"{name} is not below {folder}; `make data` fetches it")
    with gzip.open(matches[0], "rb") as file:
        return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header_size).copy())
