"""Measurement of one model on one data set."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.evaluation.comparison import ImageSet, ReferenceImages, balanced, class_accuracies
from bench.evaluation.metrics import psnr
from bench.evaluation.nearness import MAX_IMAGES, TrainingImages
from bench.evaluation.report import EvaluationResult, save_neighbours
from bench.evaluation.served_model import SamplingSetting, ServedModel
from msf_engine.repository import ModelVersion
from msf_training.autoencoder_loss import residual_share
from msf_training.class_folders import ClassFolders
from msf_training.dataset import Split
from msf_training.sample_grids import save_grid

logger = logging.getLogger(__name__)

GRID_COLUMNS = 8


@dataclass(frozen=True)
class Options:
    """Size of an evaluation. `num_images` bounds the held-out images; `rounds` are images of a setting for each."""

    settings: Sequence[SamplingSetting]
    num_images: int
    rounds: int
    images_per_class: int
    grid_classes: Sequence[str]
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """Everything that an evaluation compares; `reference_name` and `engine` are for the report."""

    version: ModelVersion
    model: ServedModel
    data: ClassFolders
    reference: ReferenceImages
    reference_name: str
    training: TrainingImages
    engine: str
    out: Path

    def run(self, options: Options) -> EvaluationResult:
        """Measure everything, and write the pictures into `out`."""
        data, default, seed = self.data, self.model.default_setting, options.seed
        num_images = min(options.num_images, len(data.held_out))
        real = self._describe("held out", balanced(data.held_out, num_images))
        latents = self.model.encode(real.split.images)
        reconstructed = self._describe("held out, reconstructed", self._decode(real.split, *latents))
        labels = real.split.labels.repeat(options.rounds)
        settings = dict.fromkeys((default, *options.settings))
        generated = [self._generate(str(setting), labels, setting, seed) for setting in settings]
        by_name = self._generate_by_name(num_images, seed)
        self._save_neighbours((by_name or generated)[0])

        every_label = torch.arange(len(data.labels)).repeat_interleave(options.images_per_class)
        every_class = self._generate("every class", every_label, default, seed)
        self._save_samples(every_class, options)
        quality = (real, reconstructed, *generated, *self._by_stage(real.split, latents[0], seed), *by_name)
        nearness = (real, self._reconstruct_training_images(num_images), *generated, *by_name)
        return EvaluationResult(
            model=f"{self.version.name} version {self.version.version}",
            engine=self.engine,
            default_setting=str(default),
            reference=self.reference_name,
            num_train=len(data.train),
            num_held_out=len(data.held_out),
            psnr_db=psnr(real.split.images, reconstructed.split.images),
            residual_share=self._residual_share(*latents),
            part_size=num_images,
            images_per_class=options.images_per_class,
            quality=[self.reference.quality(images, num_images) for images in quality],
            nearness=[row for images in nearness for row in self.training.nearness(images.name, images.split.images)],
            classes=class_accuracies(data.labels, data.train, real, every_class),
            grid_classes=options.grid_classes,
        )

    def _describe(self, name: str, split: Split, images_per_s: float | None = None) -> ImageSet:
        logger.info("%s: %d images", name, len(split))
        return self.reference.describe(name, split, images_per_s)

    def _generate(self, name: str, labels: Tensor, setting: SamplingSetting, seed: int) -> ImageSet:
        """Generate images of the data's classes `labels` (N,)."""
        started_at = time.monotonic()
        images = self.model.generate(self._model_labels(labels), setting, seed)
        return self._describe(name, Split(images, labels), len(labels) / (time.monotonic() - started_at))

    def _generate_by_name(self, count: int, seed: int) -> list[ImageSet]:
        """Generate images of image names, evenly spread; they are judged by the classes of those images."""
        data, setting = self.data, self.model.default_setting
        all_names = [name for name in self.version.labels if name not in data.labels]
        if not all_names:
            return []
        names = spread(all_names, count)
        rows = [int((data.name_indices == data.image_names.index(name)).nonzero()[0]) for name in names]
        labels = torch.tensor([self.version.labels.index(name) for name in names])
        started_at = time.monotonic()
        images = self.model.generate(labels, setting, seed)
        images_per_s = len(names) / (time.monotonic() - started_at)
        return [self._describe(f"{setting}, by image name", Split(images, data.train.labels[rows]), images_per_s)]

    def _by_stage(self, real: Split, real_base: Tensor, seed: int) -> list[ImageSet]:
        """Generate without one of two stages: bases without residuals, and residuals for real bases."""
        setting, labels = self.model.default_setting, self._model_labels(real.labels)
        if len(setting.num_steps) == 1:
            return []
        base, _ = self.model.latents(labels, setting, seed)
        completed = self.model.generate(labels, setting, seed, real_base)
        return [
            self._describe(f"{setting}, residual zeroed", self._decode(real, base)),
            self._describe(f"{setting}, real base", Split(completed, real.labels)),
        ]

    def _reconstruct_training_images(self, count: int) -> ImageSet:
        """Reconstruct training images, evenly spread."""
        train = self.data.train
        split = train.take(torch.linspace(0, len(train) - 1, count).long())
        return self._describe("trained on, reconstructed", self._decode(split, *self.model.encode(split.images)))

    def _decode(self, split: Split, *latents: Tensor) -> Split:
        """Return the images of latents, with the labels of `split`."""
        return Split(self.model.decode(*latents), split.labels)

    def _model_labels(self, labels: Tensor) -> Tensor:
        """Return the model's numbers of the data's classes `labels` (N,)."""
        return torch.tensor([self.version.labels.index(name) for name in self.data.labels])[labels]

    def _residual_share(self, *latents: Tensor) -> float:
        return residual_share(self.model.pixels.restore(*latents)).item()

    def _save_samples(self, every_class: ImageSet, options: Options) -> None:
        images = every_class.split.images
        by_class = images.reshape(len(self.data.labels), options.images_per_class, *images.shape[1:])
        rows = by_class[[self.data.labels.index(name) for name in options.grid_classes], :GRID_COLUMNS]
        save_grid(self.out / "samples.png", rows.flatten(0, 1), columns=rows.shape[1])

    def _save_neighbours(self, images: ImageSet) -> None:
        pixels = images.split.images[:MAX_IMAGES]
        neighbours = self.training.neighbours(pixels, "pixels")
        save_neighbours(self.out / "neighbours.png", pixels, neighbours, self.data.train)


def spread(items: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` evenly spread items, with repetitions if there are fewer."""
    return tuple(items[number * len(items) // count] for number in range(count))
