"""Networks that a training starts from: a public autoencoder, or the weights of another model."""

from __future__ import annotations

from pathlib import Path

from msf_engine.autoencoder import Autoencoder
from msf_engine.config import AutoencoderConfig, ModelConfig
from msf_engine.denoiser import Denoiser
from msf_engine.errors import CheckpointError
from msf_engine.interchange.autoencoder_kl import read_autoencoder_kl
from msf_engine.repository import ModelVersion
from msf_training.recipe import Recipe


def read_public_autoencoder(folder: Path, recipe: Recipe) -> tuple[AutoencoderConfig, Autoencoder]:
    """Read the `config.json` and safetensors of an `AutoencoderKL`.

    Raises ValueError if there is none, or if it does not fit the recipe's images.
    """
    try:
        config, state, _ = read_autoencoder_kl(folder)
    except CheckpointError as error:
        raise ValueError(f"{folder} does not hold an AutoencoderKL in safetensors: {error}") from error
    if config.kl["in_channels"] != recipe.channels or recipe.image_size % (2 * config.downsampling):
        raise ValueError(
            f"{folder} takes images of {config.kl['in_channels']} channels and sides in multiples of "
            f"{2 * config.downsampling}; the recipe has {recipe.channels} x {recipe.image_size}²"
        )
    autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(state)
    return config, autoencoder


def read_autoencoder(version: ModelVersion, recipe: Recipe) -> tuple[AutoencoderConfig, Autoencoder]:
    """Return a model's autoencoder. Raises ValueError if it does not fit the recipe's images."""
    image = version.config.image
    if (image.size, image.channels) != (recipe.image_size, recipe.channels):
        raise ValueError(
            f"{version} makes images of {image.channels} x {image.size}²; "
            f"the recipe has {recipe.channels} x {recipe.image_size}²"
        )
    return version.config.autoencoder, version.load().autoencoder


def check_denoisers(initial: ModelVersion, config: ModelConfig) -> None:
    """Raise ValueError if the denoisers differ from `initial`'s in more than their number of classes."""
    if initial.config.denoising_stages != config.denoising_stages:
        stages = [", ".join(model.denoising_stages) for model in (initial.config, config)]
        raise ValueError(f"cannot start from {initial}: its stages are {stages[0]}; the recipe has {stages[1]}")
    for stage in config.denoising_stages:
        theirs, ours = (model.stage(stage).denoiser.model_dump() for model in (initial.config, config))
        differences = [
            f"{field} {ours[field]} (there {theirs[field]})"
            for field in ours
            if field != "num_classes" and ours[field] != theirs[field]
        ]
        if differences:
            raise ValueError(f"cannot start from {initial}: the recipe's {stage} has {', '.join(differences)}")


def copy_weights(initial: ModelVersion, stage: str, denoiser: Denoiser, labels: tuple[str, ...]) -> None:
    """Copy a denoiser's weights; the embeddings of labels that `initial` lacks stay as they are."""
    weights = initial.load().get_submodule(stage).state_dict()
    embeddings = denoiser.labels.weight.detach().clone()
    embeddings[-1] = weights["labels.weight"][-1]  # the null label
    for index, label in enumerate(labels):
        if label in initial.labels:
            embeddings[index] = weights["labels.weight"][initial.labels.index(label)]
    denoiser.load_state_dict({**weights, "labels.weight": embeddings})
