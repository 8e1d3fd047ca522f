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
    """The training images' features (M, D), and which of the images count mirrored too: (M,) bool."""

    features: Tensor
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


def find_neighbours(views: Tensor, mirrored: Tensor, training: TrainingPoints, chunk: int = 64) -> Neighbours:
    """Of N images, given in one or several `views` (V, N, D) and `mirrored` ones (W, N, D).

    A training image counts once, with the view that is nearest to it.
    """
    count = min(1 + NUM_NEIGHBOURS, len(training.features))
    if count < 2:
        raise ValueError(f"neighbours need at least 2 training images, got {len(training.features)}")
    features = training.features.double()
    found = []
    for part, part_mirrored in zip(torch.split(views, chunk, 1), torch.split(mirrored, chunk, 1), strict=True):
        upright = _distances(part, features)  # (n, M)
        reverse = _distances(part_mirrored, features).masked_fill(~training.may_flip, torch.inf)
        distances, rows = torch.minimum(upright, reverse).topk(count, largest=False)
        found.append((rows, distances, (reverse < upright).gather(1, rows)))
    rows, distances, is_mirrored = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Neighbours(rows, distances, is_mirrored)


def _distances(views: Tensor, features: Tensor) -> Tensor:
    """(V, n, D) and (M, D) to the least over the views (n, M); in float64, as products round small distances away."""
    return torch.cdist(views.double(), features).amin(dim=0)
