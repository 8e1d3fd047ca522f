"""Is an image a copy of one that was trained on? What lies near it among the training images tells.

A copy is much nearer to one training image than to the others around. As Carlini et al. (arXiv 2301.13188) do, the
nearest distance is measured against the mean distance of 50 neighbours, so that crowded and lonely places count
alike; below a third it counts as memorised, the threshold of Yoon et al. ("Diffusion Probabilistic Models Generalize
when They Fail to Memorize", 2023) and Gu et al. (arXiv 2310.02664), whose one second neighbour would miss the copy of
an image that the training set holds in two variants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_NEIGHBOURS = 50  # beside the nearest
MEMORISED_BELOW = 1 / 3


@dataclass(frozen=True)
class TrainingPoints:
    """The training images' features (M, D), those of their mirror images, and which of these count: (M,) bool."""

    plain: Tensor
    mirrored: Tensor
    may_flip: Tensor


@dataclass(frozen=True)
class Neighbours:
    """Of N images the K nearest training images, nearest first: their rows, distances, and whether mirrored, (N, K)."""

    rows: Tensor
    distances: Tensor
    mirrored: Tensor

    @property
    def ratios(self) -> Tensor:
        """The nearest distance over the mean of the others: (N,)."""
        return self.distances[:, 0] / self.distances[:, 1:].mean(1)

    @property
    def memorised(self) -> float:
        """The share of the images that are copies."""
        return (self.ratios < MEMORISED_BELOW).double().mean().item()


def find_neighbours(points: Tensor, training: TrainingPoints, chunk: int = 64) -> Neighbours:
    """Of points (N, D); a training image counts once, as itself or mirrored, whichever is nearer."""
    count = min(1 + NUM_NEIGHBOURS, len(training.plain))
    if count < 2:
        raise ValueError(f"neighbours need at least 2 training images, got {len(training.plain)}")
    found = [_find(part, training, count) for part in torch.split(points, chunk)]
    rows, distances, mirrored = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(rows, distances, mirrored)


def _find(points: Tensor, training: TrainingPoints, count: int) -> tuple[Tensor, Tensor, Tensor]:
    plain = _distances(points, training.plain)  # (n, M)
    mirrored = _distances(points, training.mirrored).masked_fill(~training.may_flip, torch.inf)
    distances, rows = torch.minimum(plain, mirrored).topk(count, largest=False)
    return rows, distances, (mirrored < plain).gather(1, rows)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Without matrix products, whose rounding would blur the small ones."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
