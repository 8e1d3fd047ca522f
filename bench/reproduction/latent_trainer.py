"""Training of architectures on one autoencoder's latents of Fashion-MNIST, and images by them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.reproduction.architectures import LATENT_CHANNELS, LATENT_SIZE, NUM_CLASSES, Architecture
from bench.reproduction.sampling import Sampling, StageSampler
from msf_engine.config import LatentStatistics
from msf_engine.denoiser import Denoiser, DenoiserShape
from msf_engine.factorization import compose, down, up
from msf_engine.model import MsfModel, Normalizer
from msf_training.dataset import Split, to_uint8
from msf_training.denoiser_loss import DenoiserObjective, denoiser_loss
from msf_training.latents import Latents, encode_latents, normalize
from msf_training.trainer import Trainer, TrainerConfig

LEARNING_RATE = 6e-4
BATCH = 50


class LatentTrainer:
    """Training at a constant learning rate with averaged weights, so that a run can be evaluated at any point.

    `out` holds checkpoints and the averages after every requested number of images.
    """

    def __init__(self, model: MsfModel, train: Split, batch_size: int, out: Path) -> None:
        self.model = model
        self.train = train
        self.batch_size = batch_size
        self.out = out

    @cached_property
    def latents(self) -> Latents:
        """The training images' latents, factorized."""
        return encode_latents(self.model.autoencoder, self.train)

    @cached_property
    def whole(self) -> Latents:
        """The latents without factorization."""
        z = self._compose(list(self.latents.stages))
        statistics = _statistics(z)
        return Latents((normalize(z, statistics),), (statistics,), self.latents.labels)

    @cached_property
    def full_resolution(self) -> Latents:
        """The enlarged base, and the latents less it as the second stage (N, C, H, W)."""
        latents, z = self.latents, self._compose(list(self.latents.stages))
        remainder = z - up(down(z))
        statistics = _statistics(remainder)
        enlarged, residual = up(latents.stages[0]), normalize(remainder, statistics)
        return Latents((enlarged, residual), (latents.statistics[0], statistics), latents.labels)

    @cached_property
    def residuals(self) -> Latents:
        """The residuals alone, for a residual denoiser without a condition."""
        latents = self.latents
        return Latents(latents.stages[1:], latents.statistics[1:], latents.labels)

    def denoisers(
        self, architecture: Architecture, seed: int, num_images: int, objective: DenoiserObjective | None = None
    ) -> list[Denoiser]:
        """Train on `num_images`, or read what an earlier run kept. Stages that share blocks are trained together."""
        folder = self.out / f"{architecture.folder}-{seed}-{self._data_digest}"
        objective = objective or DenoiserObjective(batch_size=self.batch_size)
        modules = architecture.build(seed)
        if architecture.shares_blocks:
            return self._train("shared", modules, folder, seed, num_images, objective)
        return [
            denoiser
            for module in modules
            for denoiser in self._train(
                _stage_name(module), nn.ModuleList([module]), folder, seed, num_images, objective
            )
        ]

    def images(self, denoisers: list[Denoiser], sampling: Sampling, count: int, seed: int) -> Split:
        """Generate `count` images, class after class in rounds."""
        labels = torch.arange(count) % NUM_CLASSES
        latents = StageSampler(denoisers, sampling, (BATCH,))(labels, seed)
        if len(latents) == 1:
            return Split(self.decode(Normalizer(self.whole.statistics[0]).restore(latents[0])), labels)
        return Split(self.decode(self._compose(latents)), labels)

    def images_with_bases(self, real: Split, denoisers: list[Denoiser], sampling: Sampling, seed: int) -> Split:
        """Generate residuals for the bases of real images."""
        base = normalize(down(self.encode(real)), self.latents.statistics[0])
        latents = StageSampler(denoisers, sampling, (BATCH,))(real.labels, seed, base)
        return Split(self.decode(self._compose(latents)), real.labels)

    @torch.no_grad()
    def encode(self, split: Split) -> Tensor:
        """Return latents (N, C, H, W), not normalised."""
        parts = torch.split(torch.arange(len(split)), 250)
        return torch.cat([self.model.autoencoder.posterior(split.batch(indices)[0]).mean for indices in parts])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return the uint8 images of latents (N, C, H, W)."""
        return torch.cat([to_uint8(self.model.autoencoder.decode(part)) for part in torch.split(z, 250)])

    @cached_property
    def _data_digest(self) -> str:
        """Short digest of the training images and labels in their order: other data has other weights."""
        content = hashlib.sha256(self.train.images.numpy().tobytes())
        content.update(self.train.labels.numpy().tobytes())
        return content.hexdigest()[:8]

    def _train(
        self,
        name: str,
        modules: nn.ModuleList,
        folder: Path,
        seed: int,
        num_images: int,
        objective: DenoiserObjective,
    ) -> list[Denoiser]:
        """Train denoisers by the sum of their losses, each on its own batch."""
        file = folder / f"{name}-{num_images:07d}.pt"
        if file.exists():
            modules.load_state_dict(torch.load(file, weights_only=True))
            return _denoisers(modules.eval())
        latents = [self._latents_of(denoiser.config) for denoiser in _denoisers(modules)]
        num_iterations = num_images // self.batch_size
        settings = TrainerConfig(
            num_iterations=num_iterations, learning_rate=LEARNING_RATE, cooldown=0, seed=seed, checkpoint_every_s=60
        )

        def loss(generator: torch.Generator) -> Mapping[str, Tensor]:
            pairs = zip(_denoisers(modules), latents, strict=True)
            losses = [denoiser_loss(denoiser, data, objective, generator)["loss"] for denoiser, data in pairs]
            return {"loss": torch.stack(losses).sum()}

        trainer = Trainer(modules, settings, folder / f"{name}.pt")
        trainer.run(loss)
        if trainer.iteration > num_iterations:
            raise RuntimeError(f"{folder} was trained beyond {num_images} images; remove it to start again")
        torch.save(trainer.average.state_dict(), file)
        return _denoisers(trainer.average)

    def _latents_of(self, config: DenoiserShape) -> Latents:
        if config.size == LATENT_SIZE:
            return self.full_resolution if config.cond_channels else self.whole
        alone = config.in_channels == 3 * LATENT_CHANNELS and not config.cond_channels
        return self.residuals if alone else self.latents

    def _compose(self, latents: list[Tensor]) -> Tensor:
        base, residual = latents
        if residual.shape[-1] == LATENT_SIZE:
            statistics = self.full_resolution.statistics
            return up(Normalizer(statistics[0]).restore(base)) + Normalizer(statistics[1]).restore(residual)
        return compose(*(Normalizer(each).restore(z) for each, z in zip(self.latents.statistics, latents, strict=True)))


def _stage_name(denoiser: nn.Module) -> str:
    assert isinstance(denoiser, Denoiser)
    is_residual = denoiser.config.cond_channels > 0 or denoiser.config.in_channels == 3 * LATENT_CHANNELS
    return "residual" if is_residual else "base"


def _denoisers(modules: nn.Module) -> list[Denoiser]:
    return [module for module in modules.children() if isinstance(module, Denoiser)]


def _statistics(latents: Tensor) -> LatentStatistics:
    return LatentStatistics(mean=tuple(latents.mean((0, 2, 3)).tolist()), std=tuple(latents.std((0, 2, 3)).tolist()))
