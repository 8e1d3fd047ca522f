"""From a folder of images to a version in a model repository: the autoencoder, its latents, two denoisers.

Every part goes on from its checkpoint in `out`, so a run may be killed and started again at any moment. Under
`torchrun` each process takes a share of every batch (torch.distributed); the first one writes the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, distributed, nn

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import (
    AutoencoderConfig,
    DenoiserConfig,
    ImageConfig,
    ModelConfig,
    SamplingConfig,
    StageConfig,
    Statistics,
)
from msf_engine.denoiser import Denoiser
from msf_engine.errors import ModelRepositoryError
from msf_engine.model import MsfModel
from msf_engine.repository import ModelVersion, list_versions, read_version, save_version
from msf_training.augmentation import shift
from msf_training.autoencoder import AutoencoderObjective, autoencoder_loss
from msf_training.denoiser import DenoiserObjective, Latents, base_loss, encode_latents, residual_loss
from msf_training.folder import FolderData, load_folder
from msf_training.recipe import Fit, Recipe, StageRecipe
from msf_training.sample_grids import NUM_SHOWN, save_images, save_samples
from msf_training.trainer import Loop, LossFunction, weights_digest

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """One recipe on one folder of data. `out` keeps checkpoints, caches and sample grids."""

    recipe: Recipe
    data: FolderData
    out: Path
    device: torch.device
    initial: ModelVersion | None = None  # whose weights the denoisers begin with

    def autoencoder(self) -> Autoencoder:
        """Trained as the recipe says, or as far as it is and then on."""
        recipe = self.recipe.autoencoder
        torch.manual_seed(0)
        autoencoder: Autoencoder = Autoencoder(recipe.config(self.recipe.image_size, self.recipe.channels))
        objective = AutoencoderObjective(
            batch_size=recipe.fit.batch_size,
            kl_weight=recipe.kl_weight,
            residual_share_weight=recipe.residual_share_weight,
        )
        autoencoder = autoencoder.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        shown, _ = self.data.train.batch(torch.arange(len(self.data.train))[:NUM_SHOWN])

        def on_checkpoint(loop: Loop) -> None:
            average = loop.averages[recipe.fit.ema]
            assert isinstance(average, Autoencoder)
            with torch.no_grad():
                decoded = average.decode(average.posterior(shown.to(self.device)).mean)
            save_images(
                self.out / "samples" / f"autoencoder-{loop.iteration:06d}.png", torch.cat((shown, decoded.cpu()))
            )

        return self._trained(
            autoencoder,
            recipe.fit,
            "autoencoder",
            lambda generator: autoencoder_loss(autoencoder, self.data.train, objective, generator, self._augment),
            on_checkpoint,
        )

    def latents(self, autoencoder: Autoencoder) -> Latents:
        """Of the training images, encoded once and kept in a file that is mapped into memory."""
        file = self.out / "latents.pt"
        recipe, rows, labels = self.recipe, self.data.train.rows, self.data.train.labels
        variants = (recipe.num_variants, recipe.flip, recipe.never_flipped, recipe.shift_pixels, recipe.background)
        images = (self.out / "images.json").read_text()
        key = _digest(autoencoder, images, variants, None if rows is None else rows.tolist(), labels.tolist())
        if _is_first() and not (file.exists() and torch.load(file, mmap=True, weights_only=True).get("key") == key):
            made = encode_latents(autoencoder, self.data.train, 64, self.recipe.num_variants, self._vary)
            kept = {"key": key, "base": made.base.half(), "residual": made.residual.half(), "labels": made.labels}
            for stage, statistics in (("base", made.base_statistics), ("residual", made.residual_statistics)):
                kept[f"{stage}_mean"], kept[f"{stage}_std"] = list(statistics.mean), list(statistics.std)
            partial_file = file.with_suffix(".partial")
            torch.save(kept, partial_file)
            os.replace(partial_file, file)
            logger.info("encoded %d latents into %s", len(made.labels), file)
        _wait_for_all()
        kept = torch.load(file, mmap=True, weights_only=True)
        return Latents(
            base=kept["base"],
            residual=kept["residual"],
            labels=kept["labels"],
            base_statistics=Statistics(mean=kept["base_mean"], std=kept["base_std"]),
            residual_statistics=Statistics(mean=kept["residual_mean"], std=kept["residual_std"]),
            weights=self._weights(kept["labels"]),
            own_labels=self._own_labels(),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, then the pictures' own names."""
        return self.data.labels + (self.data.names if self.recipe.named_fraction else ())

    def base(self, config: ModelConfig, autoencoder: Autoencoder, latents: Latents) -> Denoiser:
        return self._denoiser(config.base.denoiser, self.recipe.base, "base", config, autoencoder, latents)

    def residual(self, config: ModelConfig, autoencoder: Autoencoder, latents: Latents) -> Denoiser:
        return self._denoiser(config.residual.denoiser, self.recipe.residual, "residual", config, autoencoder, latents)

    def config(self, autoencoder_config: AutoencoderConfig, latents: Latents) -> ModelConfig:
        recipe, channels = self.recipe, autoencoder_config.latent_channels
        grid = recipe.image_size // autoencoder_config.downsampling // 2
        num_classes = len(self.labels)
        return ModelConfig(
            description=recipe.description,
            image=ImageConfig(size=recipe.image_size, channels=recipe.channels),
            autoencoder=autoencoder_config,
            base=StageConfig(
                denoiser=recipe.base.config(channels, 0, grid, num_classes),
                statistics=latents.base_statistics,
                default_num_steps=recipe.base.num_steps,
                guidance=recipe.base.guidance,
            ),
            residual=StageConfig(
                denoiser=recipe.residual.config(3 * channels, channels, grid, num_classes),
                statistics=latents.residual_statistics,
                default_num_steps=recipe.residual.num_steps,
                guidance=recipe.residual.guidance,
            ),
            conditioning_noise=recipe.conditioning_noise,
            sampling=SamplingConfig(solver=recipe.solver, default_guidance_scale=recipe.guidance_scale),
        )

    def _denoiser(
        self,
        config: DenoiserConfig,
        recipe: StageRecipe,
        name: str,
        model: ModelConfig,
        autoencoder: Autoencoder,
        latents: Latents,
    ) -> Denoiser:
        torch.manual_seed(0)
        denoiser = Denoiser(config)
        if self.initial is not None:
            _copy_weights(self.initial, name, denoiser, self.labels)
        denoiser = denoiser.to(self.device)
        objective = DenoiserObjective(
            batch_size=recipe.fit.batch_size,
            label_drop=self.recipe.label_drop,
            named_fraction=self.recipe.named_fraction,
        )
        loss = residual_loss if config.cond_channels else base_loss

        def on_checkpoint(loop: Loop) -> None:
            average = loop.averages[recipe.fit.ema]
            assert isinstance(average, Denoiser)
            file = self.out / "samples" / f"{name}-{loop.iteration:06d}.png"
            save_samples(file, model, autoencoder, average, latents)

        return self._trained(
            denoiser, recipe.fit, name, lambda generator: loss(denoiser, latents, objective, generator), on_checkpoint
        )

    def _trained(
        self, module: Module, fit: Fit, name: str, loss: LossFunction, on_checkpoint: Callable[[Loop], None]
    ) -> Module:
        """The average that is served."""
        loop = Loop(module, fit.loop(), self.out / f"{name}.pt", on_checkpoint)
        loop.run(loss)
        average = loop.averages[fit.ema]
        assert isinstance(average, type(module))
        return average

    def _augment(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        if self.recipe.flip:
            chosen = torch.rand(len(images), generator=generator) < 0.5
            images = self._flipped(images, labels, chosen)
        return self._shifted(images, generator)

    def _vary(self, images: Tensor, labels: Tensor, variant: int) -> Tensor:
        """The first variant is the image itself."""
        if self.recipe.flip and variant % 2:
            images = self._flipped(images, labels, torch.ones(len(images), dtype=torch.bool))
        return self._shifted(images, torch.Generator().manual_seed(variant)) if variant >= 2 else images

    def _flipped(self, images: Tensor, labels: Tensor, chosen: Tensor) -> Tensor:
        allowed = torch.tensor([name not in self.recipe.never_flipped for name in self.data.labels])
        return torch.where((chosen & allowed[labels])[:, None, None, None], images.flip(-1), images)

    def _shifted(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.recipe.shift_pixels:
            return images
        sign = -1 if self.recipe.background == "white" else 1
        return sign * shift(sign * images, self.recipe.shift_pixels, generator)

    def _own_labels(self) -> Tensor:
        own = torch.where(self.data.train_names < 0, -1, self.data.train_names + len(self.data.labels))
        return own.repeat(self.recipe.num_variants)

    def _weights(self, labels: Tensor) -> Tensor | None:
        if self.recipe.balance == 1:
            return None
        counts = torch.bincount(labels, minlength=len(self.data.labels)).double()
        return counts.pow(self.recipe.balance - 1)[labels]


def train(
    recipe: Recipe,
    folder: Path,
    out: Path,
    repository: Path,
    *,
    name: str,
    device: torch.device,
    public_autoencoder: Path | None = None,
    initial: ModelVersion | None = None,
) -> Path | None:
    """Train what is not trained yet, and write the model as its next version. Returns its folder (the first process).

    `public_autoencoder`: a folder with the `config.json` and safetensors of an `AutoencoderKL`, used as it is.
    `initial`: a model whose autoencoder is used as it is, and whose denoisers are trained on. Raises ValueError and
    ModelRepositoryError about data, recipe, repository and `initial` before anything is trained.
    """
    with _processes(device) as own_device:
        ready = None
        if initial is not None:
            ready = _autoencoder_of(initial, recipe)
        elif public_autoencoder is not None:
            ready = _read_autoencoder(public_autoencoder, recipe)
        decode = partial(
            load_folder,
            folder,
            out / "images.npy",
            size=recipe.image_size,
            channels=recipe.channels,
            background=recipe.background,
            held_out_percent=recipe.held_out_percent,
        )
        if _is_first():
            decode()
        _wait_for_all()
        run = Run(recipe, decode(), out, own_device, initial)
        version = _next_version(repository, name, run.labels)
        _check_labels(run)
        autoencoder_config, given = ready or (recipe.autoencoder.config(recipe.image_size, recipe.channels), None)
        autoencoder = given.to(own_device) if given is not None else run.autoencoder()
        autoencoder.eval().requires_grad_(False)
        latents = run.latents(autoencoder)
        config = run.config(autoencoder_config, latents)
        if initial is not None:
            _check_denoisers(initial, config)
        base, residual = run.base(config, autoencoder, latents), run.residual(config, autoencoder, latents)
        if not _is_first():
            return None
        model = MsfModel(config)
        for part, trained in (("autoencoder", autoencoder), ("base", base), ("residual", residual)):
            model.get_submodule(part).load_state_dict(trained.state_dict())
        return save_version(repository, name, version, model, run.labels)


def _read_autoencoder(folder: Path, recipe: Recipe) -> tuple[AutoencoderConfig, Autoencoder]:
    """Raises ValueError where it is not one, or does not fit the recipe's images."""
    try:
        kl = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} does not hold an AutoencoderKL in safetensors: {error}") from error
    own = {name: value for name, value in kl.config.items() if not name.startswith("_")}
    config = AutoencoderConfig(patch_size=1, kl=own)
    if own["in_channels"] != recipe.channels or recipe.image_size % (2 * config.downsampling):
        raise ValueError(
            f"{folder} takes images of {own['in_channels']} channels, and sides in multiples of "
            f"{2 * config.downsampling}; the recipe has {recipe.channels} x {recipe.image_size}²"
        )
    autoencoder = Autoencoder(config)
    autoencoder.kl.load_state_dict(kl.state_dict())
    return config, autoencoder


def _autoencoder_of(version: ModelVersion, recipe: Recipe) -> tuple[AutoencoderConfig, Autoencoder]:
    image = version.config.image
    if (image.size, image.channels) != (recipe.image_size, recipe.channels):
        raise ValueError(
            f"{version} makes images of {image.channels} x {image.size}²; "
            f"the recipe has {recipe.channels} x {recipe.image_size}²"
        )
    return version.config.autoencoder, version.load().autoencoder


def _check_denoisers(initial: ModelVersion, config: ModelConfig) -> None:
    """All but the number of classes must be as it is in `initial`."""
    for stage in ("base", "residual"):
        theirs, ours = (getattr(each, stage).denoiser.model_dump() for each in (initial.config, config))
        other = [
            f"{field} {ours[field]} (there {theirs[field]})"
            for field in ours
            if field != "num_classes" and ours[field] != theirs[field]
        ]
        if other:
            raise ValueError(f"cannot begin with {initial}: the recipe's {stage} has {', '.join(other)}")


def _copy_weights(initial: ModelVersion, stage: str, denoiser: Denoiser, labels: tuple[str, ...]) -> None:
    """Classes that both know, by their names, and the null label keep their embeddings; the others begin anew."""
    weights = initial.load().get_submodule(stage).state_dict()
    embeddings = denoiser.labels.weight.detach().clone()
    embeddings[-1] = weights["labels.weight"][-1]
    for index, label in enumerate(labels):
        if label in initial.labels:
            embeddings[index] = weights["labels.weight"][initial.labels.index(label)]
    denoiser.load_state_dict({**weights, "labels.weight": embeddings})


def _next_version(repository: Path, name: str, labels: tuple[str, ...]) -> str:
    known = (
        [int(v) for n, v in list_versions(repository) if n == name]
        if repository.is_dir() and any(repository.iterdir())
        else []
    )
    if not known:
        return "1"
    if read_version(repository, name).labels != labels:
        raise ModelRepositoryError(f"model {name!r} of {repository} has other classes; give this one another --name")
    return str(max(known) + 1)


def _check_labels(run: Run) -> None:
    """Checkpoints hold an embedding for each label, by its number: those must stay what they are."""
    if run.recipe.named_fraction and not run.data.names:
        raise ValueError("the recipe has a named_fraction, but names.json names no picture that is trained on")
    file = run.out / "labels.json"
    if not file.exists():
        file.write_text(json.dumps(run.labels))
    elif json.loads(file.read_text()) != list(run.labels):
        raise ValueError(f"{run.out} holds the checkpoints of other classes or names; give this run another --out")


def _digest(autoencoder: Autoencoder, *context: object) -> str:
    return hashlib.sha256(repr((weights_digest(autoencoder), *context)).encode()).hexdigest()


@contextmanager
def _processes(device: torch.device) -> Iterator[torch.device]:
    """Joins torchrun's processes, if there are any; each has a GPU of its own."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def _is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def _wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()
