"""Stages of a training: the autoencoder, its latents, and the denoisers, each with its checkpoint in `out`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage
from msf_training.augmentation import Augmentation
from msf_training.autoencoder_loss import AutoencoderObjective, autoencoder_loss
from msf_training.class_folders import ClassFolders
from msf_training.dataset import to_uint8
from msf_training.denoiser_loss import DenoiserObjective, denoiser_loss
from msf_training.latents import Latents, encode_latents, read_latents, weights_digest, write_latents
from msf_training.recipe import Fit, Recipe
from msf_training.sample_grids import NUM_IMAGES, save_grid, save_samples
from msf_training.starting_point import copy_weights
from msf_training.torchrun import first_process_first
from msf_training.trainer import LossFunction, Module, Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """One recipe on one data set. `out` keeps checkpoints, caches and sample grids.

    With `initial`, the denoisers start from the weights of that model.
    """

    recipe: Recipe
    data: ClassFolders
    out: Path
    device: torch.device
    initial: ModelVersion | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Classes, then image names where the recipe uses them."""
        return self.data.labels + (self.data.image_names if self.recipe.named_fraction else ())

    def train_autoencoder(self) -> Autoencoder:
        """Train the autoencoder, from its checkpoint if there is one, and return its average."""
        recipe = self.recipe.autoencoder
        torch.manual_seed(0)
        autoencoder: Autoencoder = Autoencoder(self.recipe.autoencoder_config())
        autoencoder = autoencoder.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective = AutoencoderObjective(
            batch_size=recipe.fit.batch_size,
            kl_weight=recipe.kl_weight,
            residual_share_weight=recipe.residual_share_weight,
        )
        augmentation = self._augmentation()
        originals, _ = self.data.train.batch(torch.arange(len(self.data.train))[:NUM_IMAGES])

        @torch.no_grad()
        def save_reconstructions(file: Path, average: Autoencoder) -> None:
            decoded = average.decode(average.posterior(originals.to(self.device)).mean)
            save_grid(file, to_uint8(torch.cat((originals, decoded.cpu()))))

        return self._train(
            autoencoder,
            recipe.fit,
            "autoencoder",
            lambda generator: autoencoder_loss(autoencoder, self.data.train, objective, generator, augmentation),
            save_reconstructions,
        )

    def encode(self, autoencoder: Autoencoder) -> Latents:
        """Encode the training images, unless `out` holds their latents, and map these into memory."""
        file, key = self.out / "latents.pt", self._latents_key(autoencoder)
        with first_process_first():
            latents = read_latents(file, key)
            if latents is None:
                latents = encode_latents(
                    autoencoder,
                    self.data.train,
                    num_stages=len(self.recipe.stages),
                    batch_size=64,
                    num_variants=self.recipe.num_variants,
                    augmentation=self._augmentation(),
                )
                logger.info("encoded %d latents", len(latents.labels))
                latents = write_latents(file, latents, key)
        return replace(latents, weights=self._weights(latents.labels), image_labels=self._image_labels())

    def train_denoiser(self, stage: Stage, config: ModelConfig, autoencoder: Autoencoder, latents: Latents) -> Denoiser:
        """Train a stage's denoiser, from its checkpoint if there is one, and return its average."""
        fit = self.recipe.stages[stage].fit
        torch.manual_seed(0)
        denoiser = Denoiser(config.stage(stage).denoiser)
        if self.initial is not None:
            copy_weights(self.initial, stage, denoiser, self.labels)
        denoiser = denoiser.to(self.device)
        objective = DenoiserObjective(
            batch_size=fit.batch_size, label_drop=self.recipe.label_drop, named_fraction=self.recipe.named_fraction
        )
        return self._train(
            denoiser,
            fit,
            stage,
            lambda generator: denoiser_loss(denoiser, latents, objective, generator),
            lambda file, average: save_samples(file, config, autoencoder, average, latents),
        )

    def _train(
        self, module: Module, fit: Fit, name: str, loss: LossFunction, write_grid: Callable[[Path, Module], None]
    ) -> Module:
        """Train a module and return its average."""

        def on_checkpoint(trainer: Trainer[Module]) -> None:
            write_grid(self.out / "samples" / f"{name}-{trainer.iteration:06d}.png", trainer.average)

        trainer = Trainer(module, fit, self.out / f"{name}.pt", on_checkpoint)
        trainer.run(loss)
        return trainer.average

    def _augmentation(self) -> Augmentation:
        may_flip = torch.tensor(self.recipe.may_flip(self.data.labels))
        return Augmentation(may_flip, self.recipe.shift_pixels, -1 if self.recipe.background == "white" else 1)

    def _latents_key(self, autoencoder: Autoencoder) -> str:
        recipe, split = self.recipe, self.data.train
        variants = (recipe.num_variants, recipe.flip, recipe.never_flipped, recipe.shift_pixels, recipe.background)
        images = (self.out / "images.json").read_text()
        rows = split.rows.tolist(), split.labels.tolist()
        made_from = (weights_digest(autoencoder), images, variants, *rows, list(recipe.stages))
        return hashlib.sha256(repr(made_from).encode()).hexdigest()

    def _image_labels(self) -> Tensor:
        indices = self.data.name_indices
        return torch.where(indices < 0, -1, indices + len(self.data.labels)).repeat(self.recipe.num_variants)

    def _weights(self, labels: Tensor) -> Tensor | None:
        if self.recipe.balance == 1:
            return None
        counts = torch.bincount(labels, minlength=len(self.data.labels)).double()
        return counts.pow(self.recipe.balance - 1)[labels]
