"""Folders of diffusers' `AutoencoderKL`: `config.json` and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from msf_engine.config import AutoencoderConfig, LatentStatistics
from msf_engine.errors import CheckpointError
from msf_engine.interchange.checkpoint import WEIGHTS_NAME, read_checkpoint, read_json

# Names of the attention layers in files written before diffusers 0.18.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class ImportedAutoencoder(NamedTuple):
    """An autoencoder: its config, the weights of `msf_engine.autoencoder.Autoencoder`, its latents' statistics."""

    config: AutoencoderConfig
    state: dict[str, Tensor]
    statistics: LatentStatistics


def read_autoencoder_kl(folder: Path) -> ImportedAutoencoder:
    """Read the folder. Raises CheckpointError."""
    config_file = folder / "config.json"
    fields = read_json(config_file)
    if fields.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{config_file}: _class_name is {fields.get('_class_name')!r}; wanted: AutoencoderKL")
    try:
        with torch.device("meta"):
            network = AutoencoderKL(**{name: value for name, value in fields.items() if not name.startswith("_")})
    except Exception as error:  # diffusers checks the arguments that it is given in many ways
        raise CheckpointError(f"{config_file} describes no AutoencoderKL: {error}") from error
    checkpoint = read_checkpoint(folder / WEIGHTS_NAME)
    state = {}
    for name, tensor in network.state_dict().items():
        theirs = name if name in checkpoint else _old_name(name)
        state[f"kl.{name}"] = checkpoint.take(theirs if theirs in checkpoint else name, *tensor.shape)
    checkpoint.finish()
    kl = {name: value for name, value in network.config.items() if not name.startswith("_")}
    return ImportedAutoencoder(AutoencoderConfig(patch_size=1, kl=kl), state, _statistics(kl, config_file))


def _statistics(kl: dict[str, object], file: Path) -> LatentStatistics:
    """Return the mean and scale with which denoisers of this autoencoder's latents were trained."""
    channels, scaling, shift = kl["latent_channels"], kl.get("scaling_factor"), kl.get("shift_factor") or 0.0
    assert isinstance(channels, int)
    if not isinstance(scaling, int | float) or scaling <= 0 or not isinstance(shift, int | float):
        raise CheckpointError(
            f"{file}: scaling_factor {scaling!r}, shift_factor {shift!r}; wanted: numbers, one above 0"
        )
    means, stds = kl.get("latents_mean") or [shift] * channels, kl.get("latents_std") or [1.0] * channels
    assert isinstance(means, list)
    assert isinstance(stds, list)
    return LatentStatistics(mean=tuple(means), std=tuple(std / scaling for std in stds))


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        if f".attentions.0.{new}." in name:
            return name.replace(f".{new}.", f".{old}.")
    return name
