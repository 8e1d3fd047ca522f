"""Small convolutional networks whose features compare images: a classifier and a self-supervised encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        """Return features (B, 4 * width)."""
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
    """An encoder and a linear layer: images to logits (B, num_classes)."""

    def __init__(self, width: int, num_classes: int, channels: int = 1, patch_size: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(width, channels, patch_size)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


class SelfSupervised(nn.Module):
    """An encoder and the projector that its training needs: images to projections (B, projection)."""

    def __init__(self, width: int, channels: int = 1, patch_size: int = 2, projection: int = 256) -> None:
        super().__init__()
        self.encoder = Encoder(width, channels, patch_size)
        self.projector = nn.Sequential(
            nn.Linear(4 * width, projection, bias=False),
            nn.BatchNorm1d(projection),
            nn.ReLU(),
            nn.Linear(projection, projection),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return projections (B, projection)."""
        projected: Tensor = self.projector(self.encoder(images))
        return projected


def vicreg_loss(a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Return VICReg's loss (arXiv 2105.04906) of the projections (B, D) of two views of the same images.

    Its terms make views alike (invariance), spread the images (variance) and decorrelate the dimensions (covariance).
    """
    invariance = F.mse_loss(a, b)
    variance = sum((F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b)), torch.tensor(0.0)) / 2
    covariance = _off_diagonal_energy(a) + _off_diagonal_energy(b)
    return {"loss": 25 * (invariance + variance) + covariance, "invariance": invariance, "variance": variance}


def _off_diagonal_energy(z: Tensor) -> Tensor:
    covariance = z.T.cov()
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / len(covariance)
