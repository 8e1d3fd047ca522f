"""The figures of one image set against real images, in the features of both networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bench.evaluation.feature_networks import Described
from bench.evaluation.metrics import class_consistency, fid, intra_class_fid, precision_recall
from msf_training.data import Split

Describe = Callable[[Tensor], Described]


@dataclass(frozen=True)
class Figures:
    """Mappings go by feature network. `images_per_s` is None for what the service does not make."""

    name: str
    num_images: int
    consistency: float
    fid: Mapping[str, float]
    intra_class_fid: Mapping[str, float]
    precision: Mapping[str, float]
    recall: Mapping[str, float]
    images_per_s: float | None = None


class Reference:
    """Real images that others are compared with; their features are computed once, when first needed."""

    def __init__(self, describe: Describe, real: Split) -> None:
        self._describe = describe
        self.real = real

    @cached_property
    def _features(self) -> Mapping[str, Tensor]:
        return self._describe(self.real.images).features

    @property
    def networks(self) -> Sequence[str]:
        return tuple(self._features)

    def compare(self, name: str, images: Tensor, labels: Tensor, images_per_s: float | None = None) -> Figures:
        """Figures of uint8 images (N, 1, 32, 32) asked to be of `labels` (N,); N must be the reference's."""
        if len(images) != len(self.real):
            raise ValueError(f"{name}: {len(images)} images against {len(self.real)}; only equal numbers compare")
        described = self._describe(images)
        pairs = {network: (self._features[network], found) for network, found in described.features.items()}
        manifolds = {network: precision_recall(real, found) for network, (real, found) in pairs.items()}
        return Figures(
            name=name,
            num_images=len(images),
            consistency=class_consistency(described.classes, labels),
            fid={network: fid(real, found) for network, (real, found) in pairs.items()},
            intra_class_fid={
                network: intra_class_fid(real, self.real.labels, found, labels)
                for network, (real, found) in pairs.items()
            },
            precision={network: precision for network, (precision, _) in manifolds.items()},
            recall={network: recall for network, (_, recall) in manifolds.items()},
            images_per_s=images_per_s,
        )


def balanced(split: Split, num_images: int, skip: int = 0) -> Split:
    """`num_images` of the split after the first `skip`, going round the classes (while each lasts)."""
    if skip + num_images > len(split):
        raise ValueError(f"{skip + num_images} images were asked for; there are only {len(split)}")
    one_hot = torch.nn.functional.one_hot(split.labels)
    rank = (one_hot.cumsum(0) * one_hot).sum(1)  # how many of its class have come before, itself included
    order = (rank * one_hot.shape[1] + split.labels).argsort()[skip : skip + num_images]
    return Split(images=split.images[order], labels=split.labels[order])
