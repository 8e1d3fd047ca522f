"""Distances of image sets to the training images, in self-supervised features and in coarse pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.evaluation.feature_networks import PART_SIZE, FeatureNetworks, reduce
from bench.evaluation.neighbours import Neighbours, TrainingPoints, find_neighbours
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split
from msf_training.recipe import Recipe

COARSE_SIDE = 16
SPACES = ("self-supervised", "pixels")
QUANTILES = (0.01, 0.05, 0.5, 0.95)
MAX_IMAGES = 1_000  # of a set: distances to all training images are expensive


@dataclass(frozen=True)
class Nearness:
    """Nearest distances of an image set, and their ratios to the next ones, by quantile (0.5: the median)."""

    name: str
    space: str
    num_images: int
    distance: Mapping[float, float]
    ratio: Mapping[float, float]
    memorised: float  # share of copies


class TrainingImages:
    """Training images in every space. Mirrored ones count where the recipe flips, and shifted ones, in pixels."""

    def __init__(self, networks: FeatureNetworks, data: ClassFolders, recipe: Recipe) -> None:
        self.networks = networks
        self.recipe = recipe
        may_flip = torch.tensor(recipe.may_flip(data.labels))[data.train.labels]
        rows = torch.split(data.train.rows, PART_SIZE)
        parts = [coarse_pixels(data.train.all_images[part], recipe.background) for part in rows]
        features = {
            "self-supervised": networks.describe(data.train).features["self-supervised"],
            "pixels": torch.cat(parts),
        }
        self.points = {space: TrainingPoints(features[space], may_flip) for space in SPACES}

    def neighbours(self, images: Tensor, space: str) -> Neighbours:
        """Return the neighbours of uint8 images (N, C, H, W)."""
        return find_neighbours(self._views(images, space), self._views(images.flip(-1), space), self.points[space])

    def nearness(self, name: str, images: Tensor) -> list[Nearness]:
        """Measure the first MAX_IMAGES of a set of uint8 images (N, C, H, W) in every space."""
        return [_nearness(name, space, self.neighbours(images[:MAX_IMAGES], space)) for space in SPACES]

    def _views(self, images: Tensor, space: str) -> Tensor:
        """Return (V, N, D)."""
        if space == "pixels":
            return coarse_views(images, self.recipe.background, self.recipe.shift_pixels)
        return self.networks.describe(Split(images, torch.zeros(len(images)))).features["self-supervised"][None]


def coarse_pixels(images: Tensor, background: str) -> Tensor:
    """Reduce uint8 images (N, C, H, W) to (N, C * COARSE_SIDE²) in [0, 1]."""
    return reduce(images, background, COARSE_SIDE).flatten(1).float() / 255


def coarse_views(images: Tensor, background: str, shift_pixels: int) -> Tensor:
    """Return coarse pixels (V, N, D) of the images as they are, and shifted by `shift_pixels` in eight directions."""
    height, width = images.shape[2:]
    padded = F.pad(images, (shift_pixels,) * 4, value=255 if background == "white" else 0)
    offsets = range(0, 2 * shift_pixels + 1, max(1, shift_pixels))
    views = [padded[..., y : y + height, x : x + width] for y in offsets for x in offsets]
    return torch.stack([coarse_pixels(view, background) for view in views])


def _nearness(name: str, space: str, neighbours: Neighbours) -> Nearness:
    return Nearness(
        name=name,
        space=space,
        num_images=len(neighbours.rows),
        distance=_quantiles(neighbours.distances[:, 0]),
        ratio=_quantiles(neighbours.ratios),
        memorised=neighbours.memorised,
    )


def _quantiles(values: Tensor) -> dict[float, float]:
    quantiles = values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return dict(zip(QUANTILES, quantiles.tolist(), strict=True))
