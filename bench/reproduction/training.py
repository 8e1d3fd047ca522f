"""Trains a comparison's contenders on one autoencoder's latents of Fashion-MNIST, and makes images with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bench.engine.flops import step_flops
from bench.reproduction.sampler import Sampling, sample
from msf_engine.config import DenoiserConfig, Statistics
from msf_engine.denoiser import Denoiser
from msf_engine.factorization import compose, down
from msf_engine.model import MsfModel, Normalizer
from msf_training.data import LABELS, Split, to_uint8
from msf_training.denoiser import DenoiserObjective, Latents, base_loss, encode_latents, normalize, residual_loss
from msf_training.trainer import Loop, LoopConfig

LATENT_CHANNELS, LATENT_SIZE = 4, 8
LEARNING_RATE = 6e-4
EMA = 0.999


@dataclass(frozen=True)
class Contender:
    """A DiT, or MSF's two: `stages` are their denoisers."""

    name: str
    stages: tuple[DenoiserConfig, ...]
    is_of_equal_depth: bool = False  # with MSF's deeper denoiser, and so smaller than both together

    @property
    def flops(self) -> float:
        """Of one forward pass of every stage for one image; training takes three times as many."""
        return sum(step_flops(stage, guided=False) for stage in self.stages)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for stage in self.stages for parameter in Denoiser(stage).parameters())

    @property
    def folder(self) -> str:
        return self.name.replace("/", "-").replace(", ", "-").replace(" ", "-")


class Trainer:
    """Trains with a constant learning rate and keeps averages of the weights, so that a run can be judged anywhere
    along it. `out` holds checkpoints and the averages at every number of images that was asked for.
    """

    def __init__(self, model: MsfModel, train: Split, batch_size: int, out: Path) -> None:
        self.model = model
        self.train = train
        self.batch_size = batch_size
        self.out = out

    @cached_property
    def latents(self) -> Latents:
        return encode_latents(self.model.autoencoder, self.train)

    @cached_property
    def whole(self) -> Latents:
        """The latents as they are before they are split, as `base`."""
        latents = self.latents
        base, residual = Normalizer(latents.base_statistics), Normalizer(latents.residual_statistics)
        z = compose(base.restore(latents.base), residual.restore(latents.residual))
        statistics = Statistics(mean=tuple(z.mean((0, 2, 3)).tolist()), std=tuple(z.std((0, 2, 3)).tolist()))
        return Latents(Normalizer(statistics).normalize(z), z[:, :0], latents.labels, statistics, statistics)

    @cached_property
    def residuals(self) -> Latents:
        """The residuals alone, as `base`: for a residual denoiser that does not see one."""
        latents = self.latents
        statistics = latents.residual_statistics
        return Latents(latents.residual, latents.residual[:, :0], latents.labels, statistics, statistics)

    def denoisers(
        self, contender: Contender, seed: int, num_images: int, objective: DenoiserObjective | None = None
    ) -> list[Denoiser]:
        """Trained on so many images, or read from a file."""
        folder = self.out / f"{contender.folder}-{seed}"
        return [self._trained(stage, folder, seed, num_images, objective) for stage in contender.stages]

    def images(self, denoisers: list[Denoiser], sampling: Sampling, count: int, seed: int) -> Split:
        """`count` images, the classes in turn."""
        labels = torch.arange(count) % len(LABELS)
        made = sample(denoisers, labels, sampling, seed)
        if len(made) == 1:
            return Split(self.decode(Normalizer(self.whole.base_statistics).restore(made[0])), labels)
        return Split(self.decode(self._compose(made)), labels)

    def images_on(self, real: Split, denoisers: list[Denoiser], sampling: Sampling, seed: int) -> Split:
        """The bases of real images, with residuals made for them."""
        base = normalize(down(self.encode(real)), self.latents.base_statistics)
        return Split(self.decode(self._compose(sample(denoisers, real.labels, sampling, seed, base))), real.labels)

    @torch.no_grad()
    def encode(self, split: Split) -> Tensor:
        """Latents (N, C, H, W) as they are."""
        parts = torch.split(torch.arange(len(split)), 250)
        return torch.cat([self.model.autoencoder.posterior(split.batch(indices)[0]).mean for indices in parts])

    def decode(self, z: Tensor) -> Tensor:
        """Latents to uint8 images."""
        with torch.no_grad():
            return torch.cat([to_uint8(self.model.autoencoder.decode(part)) for part in torch.split(z, 250)])

    def _trained(
        self, config: DenoiserConfig, folder: Path, seed: int, num_images: int, objective: DenoiserObjective | None
    ) -> Denoiser:
        name = "residual" if config.in_channels == 3 * LATENT_CHANNELS else "base"
        kept = folder / f"{name}-{num_images:07d}.pt"
        torch.manual_seed(seed)
        denoiser = Denoiser(config)
        if kept.exists():
            denoiser.load_state_dict(torch.load(kept, weights_only=True))
            return denoiser.eval()
        loss = residual_loss if config.cond_channels else base_loss
        latents, objective = self._latents_of(config), objective or DenoiserObjective(batch_size=self.batch_size)
        settings = LoopConfig(
            num_iterations=num_images // self.batch_size,
            learning_rate=LEARNING_RATE,
            cooldown=0,
            ema_decays=(EMA,),
            seed=seed,
            log_every=200,
        )
        loop = Loop(denoiser, settings, folder / f"{name}.pt")
        loop.run(lambda generator: loss(denoiser, latents, objective, generator))
        if loop.iteration > settings.num_iterations:
            raise RuntimeError(f"{folder} was trained beyond {num_images} images; remove it to begin again")
        average = loop.averages[EMA]
        torch.save(average.state_dict(), kept)
        assert isinstance(average, Denoiser)
        return average

    def _latents_of(self, config: DenoiserConfig) -> Latents:
        if config.size == LATENT_SIZE:
            return self.whole
        alone = config.in_channels == 3 * LATENT_CHANNELS and not config.cond_channels
        return self.residuals if alone else self.latents

    def _compose(self, made: list[Tensor]) -> Tensor:
        base, residual = Normalizer(self.latents.base_statistics), Normalizer(self.latents.residual_statistics)
        return compose(base.restore(made[0]), residual.restore(made[1]))
