"""Training of a model from class folders: autoencoder, latents, denoisers, and a version in a model repository.

Every stage resumes from its checkpoint in `out`, so a run may be killed and started again at any moment. Under
`torchrun` each process draws its own batches (torch.distributed); the first one writes the files.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from msf_engine.model import MsfModel
from msf_engine.repository import ModelVersion, next_version, save_version
from msf_training.class_folders import MAX_UNREADABLE_PERCENT, load_class_folders
from msf_training.recipe import Recipe
from msf_training.stages import TrainingRun
from msf_training.starting_point import check_denoisers, read_autoencoder, read_public_autoencoder
from msf_training.torchrun import first_process_first, is_first_process, joined_processes


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
    max_unreadable_percent: float = MAX_UNREADABLE_PERCENT,
) -> Path | None:
    """Train the stages that are not finished, and write the model as its next version.

    Returns the version's folder in the first process, None in the others. `public_autoencoder`, a folder with the
    `config.json` and safetensors of an `AutoencoderKL`, or the autoencoder of `initial` is used unchanged; the
    denoisers start from the weights of `initial`. Image files that cannot be read are left out, up to
    `max_unreadable_percent` of them. Raises ValueError and ModelRepositoryError about data, recipe,
    repository and `initial` before any training.
    """
    with joined_processes(device) as own_device:
        if initial is not None:
            autoencoder_config, autoencoder = read_autoencoder(initial, recipe)
        elif public_autoencoder is not None:
            autoencoder_config, autoencoder = read_public_autoencoder(public_autoencoder, recipe)
        else:
            autoencoder_config, autoencoder = recipe.autoencoder_config(), None
        with first_process_first():
            data = load_class_folders(
                folder, out / "images.npy", recipe.image_format, recipe.held_out_percent, max_unreadable_percent
            )
        run = TrainingRun(recipe, data, out, own_device, initial)
        version = next_version(repository, name, run.labels)
        _check_labels(run)

        autoencoder = autoencoder.to(own_device) if autoencoder is not None else run.train_autoencoder()
        autoencoder.eval().requires_grad_(False)
        latents = run.encode(autoencoder)
        config = recipe.complete(autoencoder_config, latents.statistics, len(run.labels))
        if initial is not None:
            check_denoisers(initial, config)
        denoisers = {
            stage: run.train_denoiser(stage, config, autoencoder, latents) for stage in config.denoising_stages
        }
        if not is_first_process():
            return None
        model = MsfModel(config)
        model.autoencoder.load_state_dict(autoencoder.state_dict())
        for stage, denoiser in denoisers.items():
            model.denoiser(stage).load_state_dict(denoiser.state_dict())
        return save_version(repository, name, version, model, run.labels)


def _check_labels(run: TrainingRun) -> None:
    """Raise ValueError unless the labels are those of the run's checkpoints, which hold an embedding for each."""
    if run.recipe.named_fraction and not run.data.image_names:
        raise ValueError("the recipe has a named_fraction, but names.json names no training image")
    file = run.out / "labels.json"
    if not file.exists():
        file.write_text(json.dumps(run.labels))
    elif json.loads(file.read_text()) != list(run.labels):
        raise ValueError(f"{run.out} holds the checkpoints of other labels; choose another --out")
