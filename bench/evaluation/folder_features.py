"""The two networks that judge a model made of a folder of class folders; the generator's training sees neither.

A classifier says whether what was asked for can be seen. The other network learns without labels (VICReg, arXiv
2105.04906), so two images are near in its features when they look alike, and not when they are of one class: nearest
neighbours are looked for there. Both learn from the training split alone, at a reduced resolution.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.evaluation.feature_networks import Classifier, SelfSupervised, vicreg_loss
from msf_training.augmentation import brighten, erase, flip, shift, tint, zoom
from msf_training.data import Split, to_unit_range
from msf_training.folder import FolderData
from msf_training.recipe import Recipe
from msf_training.trainer import Loop, LoopConfig

SIDE = 64  # of the images that the networks see
COARSE_SIDE = 16  # of those that are compared pixel by pixel
CLASSIFIER_LOOP = LoopConfig(num_iterations=1500, learning_rate=4e-3, weight_decay=0.05, ema_decays=())
SELF_SUPERVISED_LOOP = LoopConfig(num_iterations=300, learning_rate=3e-3, weight_decay=0.02, ema_decays=())


@dataclass(frozen=True)
class Fits:
    """The networks' sizes and trainings: on one core, minutes."""

    width: int = 48
    patch_size: int = 4
    batch_size: int = 64
    classifier: LoopConfig = CLASSIFIER_LOOP
    self_supervised: LoopConfig = SELF_SUPERVISED_LOOP


FITS = Fits()


@dataclass(frozen=True)
class Seen:
    """N images: classes (N, K) by falling probability, and features (N, D) by the space they are in."""

    ranking: Tensor
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class Batches:
    """Training images, small, as the recipe draws them."""

    small: Tensor  # (N, C, SIDE, SIDE) uint8
    labels: Tensor
    may_flip: Tensor  # (N,) bool
    weights: Tensor

    @classmethod
    def of(cls, data: FolderData, recipe: Recipe) -> Batches:
        labels = data.train.labels
        return cls(
            small=torch.cat([reduced(images, recipe.background) for images in parts(data.train)]),
            labels=labels,
            may_flip=flippable(data.labels, recipe)[labels],
            weights=torch.bincount(labels).double().pow(recipe.balance - 1)[labels],
        )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, SIDE, SIDE) in [-1, 1], labels and whether they may be flipped (B,)."""
        rows = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        return to_unit_range(self.small[rows]), self.labels[rows], self.may_flip[rows]


def flippable(labels: tuple[str, ...], recipe: Recipe) -> Tensor:
    """Which classes keep their meaning when mirrored: (num_classes,) of bool."""
    return torch.tensor([recipe.flip and name not in recipe.never_flipped for name in labels])


def reduced(images: Tensor, background: str, side: int = SIDE) -> Tensor:
    """uint8 images (N, C, H, W) to (N, C, side, side), where 0 is the background."""
    small = F.adaptive_avg_pool2d(images.float(), side).round().to(torch.uint8)
    return 255 - small if background == "white" else small


def coarse_pixels(images: Tensor, background: str) -> Tensor:
    """uint8 images (N, C, H, W) to (N, C * COARSE_SIDE²) in [0, 1]."""
    return reduced(images, background, COARSE_SIDE).flatten(1).float() / 255


def coarse_views(images: Tensor, background: str, shift_pixels: int) -> Tensor:
    """Coarse pixels (V, N, D) of the images as they are, and moved by `shift_pixels` eight ways."""
    height, width = images.shape[2:]
    padded = F.pad(images, (shift_pixels,) * 4, value=255 if background == "white" else 0)
    offsets = range(0, 2 * shift_pixels + 1, max(1, shift_pixels))
    moved = [padded[..., y : y + height, x : x + width] for y in offsets for x in offsets]
    return torch.stack([coarse_pixels(each, background) for each in moved])


def parts(split: Split, size: int = 256) -> Iterator[Tensor]:
    """The split's images, which may be more than memory holds, `size` at a time."""
    rows = torch.arange(len(split)) if split.rows is None else split.rows
    return (split.all_images[part] for part in torch.split(rows, size))


def classifier_loss(
    classifier: Classifier, batches: Batches, batch_size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Cross-entropy on images that are flipped, moved, resized and recoloured."""
    images, labels, may_flip = batches.draw(batch_size, generator)
    changed = erase(_changed(images, may_flip, (0.8, 1.2), generator), 0.4, generator)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(changed).float()
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
    return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}


def self_supervised_loss(
    network: SelfSupervised, batches: Batches, batch_size: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """VICReg's, on two views of each image."""
    images, _, may_flip = batches.draw(batch_size, generator)
    views = [erase(_changed(images, may_flip, (0.7, 1.2), generator), 0.5, generator) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        projected = network(torch.cat(views)).float()
    return vicreg_loss(*projected.chunk(2))


def _changed(images: Tensor, may_flip: Tensor, scales: tuple[float, float], generator: torch.Generator) -> Tensor:
    moved = shift(zoom(flip(images, may_flip, generator), scales, generator), SIDE // 16, generator)
    return tint(brighten(moved, (0.7, 1.3), generator), (0.85, 1.15), generator)


@dataclass(frozen=True)
class FolderNetworks:
    classifier: Classifier
    self_supervised: SelfSupervised
    background: str

    @torch.no_grad()
    def describe(self, parts: Iterable[Tensor]) -> Seen:
        """uint8 images (n, C, H, W), a part at a time, seen in float32."""
        seen = [self._describe(images) for images in parts]
        return Seen(
            ranking=torch.cat([part.ranking for part in seen]),
            features={space: torch.cat([part.features[space] for part in seen]) for space in seen[0].features},
        )

    def _describe(self, images: Tensor) -> Seen:
        small = to_unit_range(reduced(images, self.background))
        known = self.classifier.encoder(small)
        return Seen(
            ranking=self.classifier.head(known).argsort(dim=1, descending=True),
            features={
                "classifier": known,
                "self-supervised": self.self_supervised.encoder(small),
                "pixels": coarse_pixels(images, self.background),
            },
        )


def train_folder_networks(data: FolderData, recipe: Recipe, folder: Path, fits: Fits = FITS) -> FolderNetworks:
    """Train both networks, or go on from, or just load, their checkpoints in `folder`."""
    batches = Batches.of(data, recipe)
    folder = folder / f"networks-{_digest(batches, fits)}"
    torch.manual_seed(fits.classifier.seed)
    classifier = Classifier(fits.width, len(data.labels), recipe.channels, fits.patch_size)
    classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(classifier, fits.classifier, folder / "classifier.pt").run(
        lambda generator: classifier_loss(classifier, batches, fits.batch_size, generator)
    )
    torch.manual_seed(fits.self_supervised.seed)
    network = SelfSupervised(fits.width, channels=recipe.channels, patch_size=fits.patch_size)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(network, fits.self_supervised, folder / "self_supervised.pt").run(
        lambda generator: self_supervised_loss(network, batches, 2 * fits.batch_size, generator)
    )
    return FolderNetworks(classifier.eval(), network.eval(), recipe.background)


def _digest(batches: Batches, fits: Fits) -> str:
    """Other for other images, labels, draws or networks: their checkpoints are not to be mixed up."""
    seen = hashlib.sha256(repr(fits).encode())
    for tensor in (batches.small, batches.labels, batches.may_flip, batches.weights):
        seen.update(tensor.numpy().tobytes())
    return seen.hexdigest()[:8]
