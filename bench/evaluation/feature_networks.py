"""The networks in whose features image sets are compared; the generator's training sees none of them.

A classifier learns the labels, so it tells whether the requested class is recognisable. A self-supervised encoder
learns without them, so images are near each other in its features when they look alike. Both learn from the training
images alone, at a reduced resolution, and are kept as checkpoints. An ImageNet network is used as it is published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.evaluation.augmentation import erase, recolour, zoom
from bench.evaluation.imagenet import CompiledEncoder
from bench.evaluation.networks import Classifier, SelfSupervised, vicreg_loss
from msf_training.augmentation import flip, shift
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split, to_unit_range
from msf_training.latents import weights_digest
from msf_training.mixed_precision import autocast
from msf_training.recipe import Recipe
from msf_training.trainer import Trainer, TrainerConfig

MAX_SIDE = 64  # of the images that the trained networks see
GRID = 16  # positions along a side behind the networks' first layer
PART_SIZE = 128  # images described at a time
MANY_IMAGES = 20_000


@dataclass(frozen=True)
class NetworkTraining:
    """Width of the networks and length of their trainings: minutes on one core."""

    width: int
    batch_size: int
    classifier: TrainerConfig
    self_supervised: TrainerConfig


def _fit(num_iterations: int, learning_rate: float, weight_decay: float) -> TrainerConfig:
    return TrainerConfig(
        num_iterations=num_iterations, learning_rate=learning_rate, weight_decay=weight_decay, cooldown=1
    )


FEW = NetworkTraining(48, 64, classifier=_fit(1500, 4e-3, 0.05), self_supervised=_fit(300, 3e-3, 0.02))
MANY = NetworkTraining(32, 128, classifier=_fit(2400, 4e-3, 0.02), self_supervised=_fit(1200, 3e-3, 0.02))


@dataclass(frozen=True)
class Description:
    """N images as the networks see them: classes (N, K) by falling probability, and features (N, D) by network."""

    ranking: Tensor
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class FeatureNetworks:
    """The trained networks, for images on `background`, and the ImageNet network if there is one."""

    classifier: Classifier
    self_supervised: SelfSupervised
    background: str
    imagenet: CompiledEncoder | None = None

    @torch.no_grad()
    def describe(self, split: Split) -> Description:
        """Describe a split, part by part, in float32: it may be larger than memory."""
        parts = [self._describe(split.all_images[rows]) for rows in torch.split(split.rows, PART_SIZE)]
        return Description(
            ranking=torch.cat([part.ranking for part in parts]),
            features={name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features},
        )

    def _describe(self, images: Tensor) -> Description:
        small = to_unit_range(reduce(images, self.background))
        features = {
            "classifier": self.classifier.encoder(small),
            "self-supervised": self.self_supervised.encoder(small),
        }
        if self.imagenet is not None:
            features["ImageNet"] = self.imagenet(to_unit_range(images))
        ranking = self.classifier.head(features["classifier"]).argsort(dim=1, descending=True)
        return Description(ranking, features)

    def digest(self) -> str:
        """Return a digest that changes with any weight of the trained networks."""
        both = weights_digest(self.classifier) + weights_digest(self.self_supervised)
        return hashlib.sha256(both.encode()).hexdigest()[:16]


def reduce(images: Tensor, background: str, side: int = MAX_SIDE) -> Tensor:
    """Reduce uint8 images (N, C, H, W) to at most `side` pixels along each side; 0 is then the background."""
    small = F.adaptive_avg_pool2d(images.float(), min(side, images.shape[-1])).round().to(torch.uint8)
    return 255 - small if background == "white" else small


@dataclass(frozen=True)
class Batches:
    """Reduced training images (N, C, side, side) uint8 with labels and `may_flip` (N,), drawn by `weights` (N,)."""

    images: Tensor
    labels: Tensor
    may_flip: Tensor
    weights: Tensor

    @classmethod
    def of(cls, data: ClassFolders, recipe: Recipe) -> Batches:
        """Reduce the training images; classes are drawn as the recipe balances them."""
        train = data.train
        parts = [train.all_images[rows] for rows in torch.split(train.rows, PART_SIZE)]
        return cls(
            images=torch.cat([reduce(part, recipe.background) for part in parts]),
            labels=train.labels,
            may_flip=torch.tensor(recipe.may_flip(data.labels))[train.labels],
            weights=torch.bincount(train.labels).double().pow(recipe.balance - 1)[train.labels],
        )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return images (B, C, side, side) in [-1, 1], labels and `may_flip` (B,)."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return to_unit_range(self.images[rows]), self.labels[rows], self.may_flip[rows]

    def digest(self) -> str:
        """Return a digest of images, labels and draws."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels, self.may_flip, self.weights):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def train_feature_networks(
    data: ClassFolders, recipe: Recipe, folder: Path, training: NetworkTraining | None = None
) -> FeatureNetworks:
    """Train both networks, or load them from their checkpoints below `folder`."""
    training = training or (MANY if len(data.train) >= MANY_IMAGES else FEW)
    batches = Batches.of(data, recipe)
    folder = folder / hashlib.sha256(f"{training}{batches.digest()}".encode()).hexdigest()[:8]
    patch_size = batches.images.shape[-1] // GRID
    torch.manual_seed(0)
    classifier = Classifier(training.width, len(data.labels), recipe.channels, patch_size)
    classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Trainer(classifier, training.classifier, folder / "classifier.pt").run(
        lambda generator: classifier_loss(classifier, batches, training.batch_size, generator)
    )
    network = SelfSupervised(training.width, recipe.channels, patch_size)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Trainer(network, training.self_supervised, folder / "self_supervised.pt").run(
        lambda generator: self_supervised_loss(network, batches, 2 * training.batch_size, generator)
    )
    return FeatureNetworks(classifier.eval(), network.eval(), recipe.background)


def classifier_loss(
    classifier: Classifier, batches: Batches, batch_size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the cross-entropy on images that are flipped, moved, resized and recoloured."""
    images, labels, may_flip = batches.draw(batch_size, generator)
    augmented = erase(_augment(images, may_flip, (0.8, 1.2), generator), 0.4, generator)
    with autocast(torch.device("cpu")):
        logits = classifier(augmented).float()
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
    return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


def self_supervised_loss(
    network: SelfSupervised, batches: Batches, batch_size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return VICReg's loss on two views of each image."""
    images, _, may_flip = batches.draw(batch_size, generator)
    views = [erase(_augment(images, may_flip, (0.7, 1.2), generator), 0.5, generator) for _ in range(2)]
    with autocast(torch.device("cpu")):
        projected = network(torch.cat(views)).float()
    return vicreg_loss(*projected.chunk(2))


def _augment(images: Tensor, may_flip: Tensor, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    moved = shift(zoom(flip(images, may_flip, generator), scales, generator), images.shape[-1] // 16, generator)
    return recolour(moved, (0.7, 1.3), (0.85, 1.15), generator)
