"""Nearest training images, which tell whether an image is a copy.

A copy is much nearer to one training image than to the others around. As in Carlini et al. (arXiv 2301.13188), the
nearest distance is compared with the mean distance of 50 neighbours, so that crowded and sparse regions count alike.
Below a third an image counts as memorised, the threshold of Yoon et al. ("Diffusion Probabilistic Models Generalize
when They Fail to Memorize", 2023) and Gu et al. (arXiv 2310.02664); their single second neighbour would miss the copy
of an image that the training set holds in two variants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_NEIGHBOURS = 50  # after the nearest
MEMORISED_BELOW = 1 / 3


@dataclass(frozen=True)
class TrainingPoints:
    """Features (M, D) of the training images; `may_flip` (M,) marks those whose mirror images count too."""

    features: Tensor
    may_flip: Tensor


@dataclass(frozen=True)
class Neighbours:
    """The K nearest training images of N images, nearest first: row, distance, and whether mirrored, (N, K) each."""

    rows: Tensor
    distances: Tensor
    mirrored: Tensor

    @property
    def ratios(self) -> Tensor:
        """Return the nearest distance over the mean of the others: (N,)."""
        return self.distances[:, 0] / self.distances[:, 1:].mean(1)

    @property
    def memorised(self) -> float:
        """Return the share of the images that are copies."""
        return (self.ratios < MEMORISED_BELOW).double().mean().item()


def find_neighbours(views: Tensor, mirrored: Tensor, training: TrainingPoints, chunk: int = 64) -> Neighbours:
    """Find the neighbours of N images, represented by `views` (V, N, D) and mirrored views (W, N, D).

    A training image counts once, with the view that is nearest to it.
    """
    count = min(1 + NUM_NEIGHBOURS, len(training.features))
    if count < 2:
        raise ValueError(f"neighbours need at least 2 training images, got {len(training.features)}")
    features = training.features.double()
    chunks = []
    for part, part_mirrored in zip(torch.split(views, chunk, 1), torch.split(mirrored, chunk, 1), strict=True):
        upright = _distances(part, features)  # (n, M)
        reverse = _distances(part_mirrored, features).masked_fill(~training.may_flip, torch.inf)
        distances, rows = torch.minimum(upright, reverse).topk(count, largest=False)
        chunks.append((rows, distances, (reverse < upright).gather(1, rows)))
    rows, distances, is_mirrored = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Neighbours(rows, distances, is_mirrored)


def _distances(views: Tensor, features: Tensor) -> Tensor:
    """Return the least distance over the views (V, n, D) to features (M, D): (n, M), in float64 as products round."""
    return torch.cdist(views.double(), features).amin(dim=0)
