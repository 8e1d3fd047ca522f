"""The figures of image sets against a folder's training images: what can be seen in them, and what they copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench.evaluation.folder_features import FolderNetworks, Seen, coarse_views, flippable, parts
from bench.evaluation.metrics import fid, top_k
from bench.evaluation.neighbours import Neighbours, TrainingPoints, find_neighbours
from msf_training.folder import FolderData
from msf_training.recipe import Recipe

PART_SIZE = 128  # images that the networks see at a time
SPACES = ("self-supervised", "pixels")  # in which neighbours are looked for
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ImageSet:
    """uint8 images (N, C, H, W) asked to be of `labels` (N,), as the networks see them.

    `images_per_s` is None for what is not generated.
    """

    name: str
    images: Tensor
    labels: Tensor
    seen: Seen
    images_per_s: float | None = None


@dataclass(frozen=True)
class Quality:
    """How often the classifier sees the label first, or among three; `fid` is to the training images."""

    name: str
    num_images: int
    top_1: float
    top_3: float
    fid: float
    images_per_s: float | None


@dataclass(frozen=True)
class Nearness:
    """Quantiles over a set's images, by their share (0.5: the median), of the distance to the nearest training image
    and of its ratio to that of the next ones; `memorised`: the share of copies.
    """

    name: str
    space: str
    num_images: int
    distance: Mapping[float, float]
    ratio: Mapping[float, float]
    memorised: float


@dataclass(frozen=True)
class ClassFigures:
    """`held_out` is the classifier's accuracy on real images, where there are any; `seen_as`: its commonest answer."""

    name: str
    num_train: int
    num_held_out: int
    held_out: float | None
    generated: float
    seen_as: str


class TrainingSet:
    """What others are compared with. Its features are computed once, when first needed."""

    def __init__(self, networks: FolderNetworks, data: FolderData, recipe: Recipe) -> None:
        self.networks = networks
        self.data = data
        self.recipe = recipe
        self.may_flip = flippable(data.labels, recipe)[data.train.labels]

    @cached_property
    def _features(self) -> Mapping[str, Tensor]:
        return self.networks.describe(parts(self.data.train)).features

    def quality(self, images: ImageSet, fid_size: int) -> Quality:
        """FID is the mean over the set's runs of `fid_size` images: it compares between sets of any size."""
        features, reference = images.seen.features["classifier"], self._features["classifier"]
        fids = [fid(reference, part) for part in torch.split(features, fid_size) if len(part) == fid_size]
        return Quality(
            name=images.name,
            num_images=len(images.labels),
            top_1=top_k(images.seen.ranking, images.labels, 1),
            top_3=top_k(images.seen.ranking, images.labels, 3),
            fid=sum(fids) / len(fids),
            images_per_s=images.images_per_s,
        )

    def neighbours(self, images: ImageSet, space: str) -> Neighbours:
        """Mirrored images count where the recipe flips; moved ones, of which a network knows, in pixels."""
        views, mirrored = self._views(space, images.images), self._views(space, images.images.flip(-1))
        return find_neighbours(views, mirrored, TrainingPoints(self._features[space], self.may_flip))

    def _views(self, space: str, images: Tensor) -> Tensor:
        """(V, N, D)"""
        if space == "pixels":
            return coarse_views(images, self.recipe.background, self.recipe.shift_pixels)
        return self.networks.describe(torch.split(images, PART_SIZE)).features[space][None]

    def nearness(self, images: ImageSet) -> list[Nearness]:
        return [_nearness(images.name, space, self.neighbours(images, space)) for space in SPACES]

    def classes(self, held_out: ImageSet, generated: ImageSet) -> list[ClassFigures]:
        """Of every class, in the order of the labels."""
        return [self._class(label, held_out, generated) for label in range(len(self.data.labels))]

    def _class(self, label: int, held_out: ImageSet, made: ImageSet) -> ClassFigures:
        real = held_out.seen.ranking[held_out.labels == label, 0]
        generated = made.seen.ranking[made.labels == label, 0]
        return ClassFigures(
            name=self.data.labels[label],
            num_train=int((self.data.train.labels == label).sum()),
            num_held_out=len(real),
            held_out=(real == label).double().mean().item() if len(real) else None,
            generated=(generated == label).double().mean().item(),
            seen_as=self.data.labels[int(generated.mode().values)],
        )


def _nearness(name: str, space: str, found: Neighbours) -> Nearness:
    return Nearness(
        name=name,
        space=space,
        num_images=len(found.rows),
        distance=_quantiles(found.distances[:, 0]),
        ratio=_quantiles(found.ratios),
        memorised=found.memorised,
    )


def _quantiles(values: Tensor) -> dict[float, float]:
    found = values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return dict(zip(QUANTILES, found.tolist(), strict=True))
