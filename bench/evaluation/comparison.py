"""Figures of image sets against real images, in the features of all networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import torch
from torch import Tensor

from bench.evaluation.feature_networks import Description, FeatureNetworks
from bench.evaluation.metrics import fid, precision_recall, top_k
from msf_training.dataset import Split


@dataclass(frozen=True)
class ImageSet:
    """Images with their requested labels, as the networks see them; `images_per_s` is None for real images."""

    name: str
    split: Split
    description: Description
    images_per_s: float | None = None


@dataclass(frozen=True)
class Quality:
    """Figures of an image set. `top_1` and `top_3` are class accuracies; mappings are by feature network."""

    name: str
    num_images: int
    top_1: float
    top_3: float
    fid: Mapping[str, float]
    precision: Mapping[str, float]
    recall: Mapping[str, float]
    images_per_s: float | None = None


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy of the classifier on a class: `held_out` on real images, None without any; `seen_as` is its mode."""

    name: str
    num_train: int
    num_held_out: int
    held_out: float | None
    generated: float
    seen_as: str


class ReferenceImages:
    """Real images that image sets are compared with; their features are computed once, when first needed."""

    def __init__(self, networks: FeatureNetworks, real: Split) -> None:
        self._networks = networks
        self.real = real

    @cached_property
    def features(self) -> Mapping[str, Tensor]:
        """Features (N, D) by network."""
        return self._networks.describe(self.real).features

    def quality(self, images: ImageSet, part_size: int | None = None) -> Quality:
        """Measure an image set; FID, precision and recall are means over its whole parts of `part_size` images."""
        count = len(images.split)
        part_size = part_size or count
        fids, precisions, recalls = {}, {}, {}
        for network, real in self.features.items():
            parts = torch.split(images.description.features[network][: count // part_size * part_size], part_size)
            fids[network] = fmean(fid(real, part) for part in parts)
            manifolds = [precision_recall(real, part) for part in parts]
            precisions[network], recalls[network] = map(fmean, zip(*manifolds, strict=True))
        return Quality(
            name=images.name,
            num_images=count,
            top_1=top_k(images.description.ranking, images.split.labels, 1),
            top_3=top_k(images.description.ranking, images.split.labels, 3),
            fid=fids,
            precision=precisions,
            recall=recalls,
            images_per_s=images.images_per_s,
        )

    def describe(self, name: str, split: Split, images_per_s: float | None = None) -> ImageSet:
        """Return the image set of a split."""
        return ImageSet(name, split, self._networks.describe(split), images_per_s)


def class_accuracies(
    labels: Sequence[str], train: Split, held_out: ImageSet, generated: ImageSet
) -> list[ClassAccuracy]:
    """Measure every class, in the order of the labels."""
    return [_class_accuracy(labels, label, train, held_out, generated) for label in range(len(labels))]


def _class_accuracy(
    labels: Sequence[str], label: int, train: Split, held_out: ImageSet, generated: ImageSet
) -> ClassAccuracy:
    real_answers, answers = (
        images.description.ranking[images.split.labels == label, 0] for images in (held_out, generated)
    )
    return ClassAccuracy(
        name=labels[label],
        num_train=int((train.labels == label).sum()),
        num_held_out=len(real_answers),
        held_out=(real_answers == label).double().mean().item() if len(real_answers) else None,
        generated=(answers == label).double().mean().item(),
        seen_as=labels[int(answers.mode().values)],
    )


def balanced(split: Split, num_images: int, skip: int = 0) -> Split:
    """Take `num_images` of a split after the first `skip`, in rounds of one image of each class that has any left."""
    if skip + num_images > len(split):
        raise ValueError(f"{skip + num_images} images requested; there are only {len(split)}")
    one_hot = torch.nn.functional.one_hot(split.labels)
    rank = (one_hot.cumsum(0) * one_hot).sum(1)  # position within the class, from 1
    return split.take((rank * one_hot.shape[1] + split.labels).argsort()[skip : skip + num_images])
