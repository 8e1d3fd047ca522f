"""The two networks in whose features image sets are compared; the generator's training never sees either.

One learns the labels, so it knows what was asked for. The other learns without them (VICReg, arXiv 2105.04906),
so it also keeps what the labels do not need. Both see the training images alone and are cached as checkpoints.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msf_training.augmentation import brighten, erase, shift, zoom
from msf_training.data import LABELS, Split, to_unit_range
from msf_training.trainer import Loop, LoopConfig

CLASSIFIER_LOOP = LoopConfig(num_iterations=2400, learning_rate=4e-3, weight_decay=0.02, ema_decays=())
SELF_SUPERVISED_LOOP = LoopConfig(num_iterations=1200, learning_rate=3e-3, weight_decay=0.02, ema_decays=())


class Encoder(nn.Module):
    """Images (B, channels, H, W) in [-1, 1] to features (B, 4 * width)."""

    def __init__(self, width: int, channels: int = 1, patch_size: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(patch_size),  # full-resolution layers would cost most of the time
            _convolution(channels * patch_size**2, width),
            _Block(width),
            _convolution(width, 2 * width, stride=2),
            _Block(2 * width),
            _convolution(2 * width, 4 * width, stride=2),
            _Block(4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(width, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layers(x))


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Classifier(nn.Module):
    """An encoder and a linear layer that names the class."""

    def __init__(self, width: int = 32, num_classes: int = len(LABELS), channels: int = 1, patch_size: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(width, channels, patch_size)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


class SelfSupervised(nn.Module):
    """An encoder, and the projector that its training needs."""

    def __init__(self, width: int = 32, projection: int = 256, channels: int = 1, patch_size: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(width, channels, patch_size)
        self.projector = nn.Sequential(
            nn.Linear(4 * width, projection, bias=False),
            nn.BatchNorm1d(projection),
            nn.ReLU(),
            nn.Linear(projection, projection),
        )

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(self.encoder(images))
        return projected


def classifier_loss(
    classifier: Classifier, data: Split, generator: torch.Generator, batch_size: int = 128
) -> dict[str, Tensor]:
    """Cross-entropy on shifted images."""
    images, labels = data.batch(torch.randint(len(data), (batch_size,), generator=generator))
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(shift(images, 2, generator)).float()
    return {"loss": F.cross_entropy(logits, labels), "accuracy": (logits.argmax(1) == labels).float().mean()}


def self_supervised_loss(
    network: SelfSupervised, data: Split, generator: torch.Generator, batch_size: int = 256
) -> dict[str, Tensor]:
    """VICReg on two views of an image: alike (invariance), spread (variance), not redundant (covariance)."""
    images, _ = data.batch(torch.randint(len(data), (batch_size,), generator=generator))
    views = torch.cat((_view(images, generator), _view(images, generator)))
    with torch.autocast("cpu", torch.bfloat16):
        projected = network(views).float()
    return vicreg_loss(*projected.chunk(2))


def vicreg_loss(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Of the projections (B, D) of two views of the same images."""
    invariance = F.mse_loss(a, b)
    variance = sum((F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b)), torch.tensor(0.0)) / 2
    covariance = _off_diagonal_energy(a) + _off_diagonal_energy(b)
    return {"loss": 25 * (invariance + variance) + covariance, "invariance": invariance, "variance": variance}


def _view(images: Tensor, generator: torch.Generator) -> Tensor:
    moved = shift(zoom(images, (0.7, 1.1), generator), 3, generator)
    return erase(brighten(moved, (0.6, 1.4), generator), 0.5, generator)


def _off_diagonal_energy(z: Tensor) -> Tensor:
    covariance = z.T.cov()
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance)


@dataclass(frozen=True)
class FeatureNetworks:
    classifier: Classifier
    self_supervised: SelfSupervised

    def describe(self, images: Tensor) -> Described:
        """uint8 images (N, 1, 32, 32) to their features and classes."""
        known = extract(self.classifier.encoder, images)
        with torch.no_grad():
            classes = self.classifier.head(known).argmax(1)
        features = {"classifier": known, "self-supervised": extract(self.self_supervised.encoder, images)}
        return Described(classes=classes, features=features)

    def fingerprint(self) -> str:
        """Changes with any weight, so with any figure that these networks measure."""
        digest = hashlib.sha256()
        for network in (self.classifier, self.self_supervised):
            for name, tensor in network.state_dict().items():
                digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Described:
    """An image set as the networks see it: predicted `classes` (N,), and `features` (N, D) by network."""

    classes: Tensor
    features: dict[str, Tensor]


@torch.no_grad()
def extract(encoder: Encoder, images: Tensor, batch_size: int = 500) -> Tensor:
    """uint8 images (N, 1, 32, 32) to features (N, D), in float32 and evaluation mode."""
    encoder.eval()
    return torch.cat([encoder(to_unit_range(batch)) for batch in torch.split(images, batch_size)])


def train_networks(
    data: Split,
    folder: Path,
    classifier_loop: LoopConfig = CLASSIFIER_LOOP,
    self_supervised_loop: LoopConfig = SELF_SUPERVISED_LOOP,
) -> FeatureNetworks:
    """Train both networks, or go on from, or just load, their checkpoints in `folder`."""
    torch.manual_seed(classifier_loop.seed)
    classifier = Classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(classifier, classifier_loop, folder / "classifier.pt").run(
        lambda generator: classifier_loss(classifier, data, generator)
    )
    torch.manual_seed(self_supervised_loop.seed)
    network = SelfSupervised().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    Loop(network, self_supervised_loop, folder / "self_supervised.pt").run(
        lambda generator: self_supervised_loss(network, data, generator)
    )
    return FeatureNetworks(classifier=classifier.eval(), self_supervised=network.eval())
