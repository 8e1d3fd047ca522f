"""Latents of a data set: encoded once, factorized, normalised, and kept in a file."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import LatentStatistics
from msf_engine.factorization import decompose
from msf_training.augmentation import Augmentation
from msf_training.dataset import Split


@dataclass(frozen=True)
class Latents:
    """Normalised latents (N, C, h, w) of each denoising stage, in order, with class labels (N,).

    They are base and residual, or the whole latent for a model of one stage. Rows are drawn in proportion to `weights`
    (N,), uniformly without. `image_labels` (N,) are the labels of the images' names, -1 for unnamed images.
    """

    stages: tuple[Tensor, ...]
    statistics: tuple[LatentStatistics, ...]
    labels: Tensor
    weights: Tensor | None = None
    image_labels: Tensor | None = None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random row indices (count,)."""
        if self.weights is None:
            return torch.randint(len(self.labels), (count,), generator=generator)
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def draw_labels(self, indices: Tensor, named_fraction: float, generator: torch.Generator) -> Tensor:
        """Return class labels (len(indices),), replaced for `named_fraction` of the named images by their own."""
        labels = self.labels[indices]
        if self.image_labels is None or not named_fraction:
            return labels
        image_labels = self.image_labels[indices]
        by_name = (torch.rand(len(indices), generator=generator) < named_fraction) & (image_labels >= 0)
        return torch.where(by_name, image_labels, labels)


@torch.no_grad()
def encode_latents(
    autoencoder: Autoencoder,
    data: Split,
    *,
    num_stages: int = 2,
    batch_size: int = 250,
    num_variants: int = 1,
    augmentation: Augmentation | None = None,
) -> Latents:
    """Encode a whole split to its posterior means, each variant of each image once, and normalise them."""
    device = next(autoencoder.parameters()).device
    parts = []
    for variant in range(num_variants):
        for indices in torch.split(torch.arange(len(data)), batch_size):
            images, labels = data.batch(indices)
            images = augmentation.variant(images, labels, variant) if augmentation else images
            mean = autoencoder.posterior(images.to(device)).mean
            parts.append([part.cpu() for part in (decompose(mean) if num_stages == 2 else (mean,))])
    stages = [torch.cat(stage) for stage in zip(*parts, strict=True)]
    statistics = tuple(map(_measure, stages))
    normalized = tuple(map(normalize, stages, statistics))
    return Latents(normalized, statistics, data.labels.repeat(num_variants))


def normalize(latents: Tensor, statistics: LatentStatistics) -> Tensor:
    """Bring latents (N, C, h, w) to zero mean and unit variance per channel."""
    mean, std = torch.tensor(statistics.mean), torch.tensor(statistics.std)
    return (latents - mean[:, None, None]) / std[:, None, None]


def _measure(latents: Tensor) -> LatentStatistics:
    """Round as the config does, so that training and serving use the same numbers."""
    return LatentStatistics(
        mean=tuple(round(value, 6) for value in latents.mean((0, 2, 3)).tolist()),
        std=tuple(round(value, 6) for value in latents.std((0, 2, 3)).tolist()),
    )


def write_latents(file: Path, latents: Latents, key: str) -> Latents:
    """Write latents to a file as float16 and map them; `key` tells what they were made from."""
    content = {
        "key": key,
        "stages": [stage.half() for stage in latents.stages],
        "statistics": [statistics.model_dump_json() for statistics in latents.statistics],
        "labels": latents.labels,
    }
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, file)
    mapped = read_latents(file, key)
    assert mapped is not None
    return mapped


def read_latents(file: Path, key: str) -> Latents | None:
    """Map the latents of a file into memory. Returns None if there is no file or it has another key."""
    if not file.exists():
        return None
    content = torch.load(file, mmap=True, weights_only=True)
    if content.get("key") != key:
        return None
    statistics = map(LatentStatistics.model_validate_json, content["statistics"])
    return Latents(tuple(content["stages"]), tuple(statistics), content["labels"])


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of all weights; used to invalidate derived artifacts."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
