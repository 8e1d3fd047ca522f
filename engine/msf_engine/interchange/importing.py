"""`msf import`: public checkpoints as models of the repository.

A version appears by one rename, when all of it has been read, checked and written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from pydantic import ValidationError

from msf_engine.config import ModelConfig
from msf_engine.denoiser_config import DenoiserConfig
from msf_engine.errors import CheckpointError, ModelRepositoryError
from msf_engine.interchange.autoencoder_kl import ImportedAutoencoder, read_autoencoder_kl
from msf_engine.interchange.checkpoint import WEIGHTS_NAME, read_checkpoint, read_config, read_json
from msf_engine.interchange.diffusers_dit import SchedulerConfig, State, read_transformer
from msf_engine.interchange.labels import class_labels
from msf_engine.interchange.model_card import model_card
from msf_engine.interchange.timm_dit import read_denoiser
from msf_engine.model import MsfModel
from msf_engine.options import LAYOUTS, Layout
from msf_engine.repository import NAME, read_version, save_version
from msf_scheduler.stage import Stage

NUM_STEPS = 50
_DDPM = {"kind": "variance_preserving", "prediction": "epsilon"}
_FLOW_TO_ONE = {"kind": "flow", "data_at": 1}
# How each layout's published code samples: process, solver, guidance scale, and where guidance acts.
_SAMPLING: Mapping[Layout, tuple[dict[str, Any], str, float, dict[str, Any]]] = {
    "dit": (_DDPM, "ddim", 4.0, {"channels": 3}),
    "sit": (_FLOW_TO_ONE, "ab2", 4.0, {"channels": 3}),
    "repa": ({"kind": "flow", "data_at": 0}, "ab2", 1.8, {"interval": (0.0, 0.7)}),
    "lightningdit": (_FLOW_TO_ONE, "ab2", 4.0, {}),
}


@dataclass(frozen=True)
class ImportOptions:
    """Facts that a source does not hold; a file needs a layout and an autoencoder."""

    autoencoder: Path | None = None
    layout: Layout | None = None
    labels: Path | None = None
    num_heads: int | None = None


@dataclass(frozen=True)
class ImportedDenoiser:
    """A denoiser, how it is sampled, and the files that it is from."""

    kind: str
    config: DenoiserConfig
    state: State
    process: Mapping[str, Any]
    solver: str
    guidance_scale: float
    guidance: Mapping[str, Any]
    id2label: Mapping[str, str] | None
    files: Sequence[Path]


def import_model(source: Path, repository: Path, name: str, options: ImportOptions) -> Path:
    """Write the model into the repository as version 1. Return its folder. Raises EngineError."""
    if not NAME.fullmatch(name):
        raise ModelRepositoryError(f"Invalid --name {name!r}. Allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'.")
    if (repository / name).exists():
        raise ModelRepositoryError(f"{repository / name} exists; wanted: another --name")
    try:
        denoiser, autoencoder_folder = _read_source(source, options)
        autoencoder = read_autoencoder_kl(autoencoder_folder)
        labels = class_labels(denoiser.config.num_classes, options.labels, denoiser.id2label)
        config = _model_config(denoiser, autoencoder)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{source} does not fit together: {where or 'model'}: {first['msg']}") from error
    with torch.device("meta"):  # the weights are there already
        model = MsfModel(config)
    model.autoencoder.load_state_dict(autoencoder.state, assign=True)
    model.denoiser(Stage.DENOISE).load_state_dict(denoiser.state, assign=True)
    files = (*denoiser.files, autoencoder_folder / WEIGHTS_NAME)
    card = model_card(name, denoiser.kind, config, {str(file): _sha256(file) for file in files})
    return _publish(repository, name, model, labels, card)


def _read_source(source: Path, options: ImportOptions) -> tuple[ImportedDenoiser, Path]:
    """Return the denoiser and the folder of its autoencoder."""
    if source.is_file():
        if options.layout is None:
            raise CheckpointError(f"{source} does not say what it is; wanted: --layout {' | '.join(LAYOUTS)}")
        if options.autoencoder is None:
            raise CheckpointError(f"{source} has no autoencoder; wanted: --vae FOLDER of an AutoencoderKL")
        return _read_file(source, options.layout, options.num_heads), options.autoencoder
    if not source.is_dir():
        raise CheckpointError(f"{source} does not exist; wanted: a DiTPipeline folder, or a file of weights")
    if not (source / "model_index.json").is_file():
        if (source / "config.json").is_file():
            class_name = read_json(source / "config.json").get("_class_name")
            raise CheckpointError(
                f"{source} holds {class_name}; wanted: a DiTPipeline folder (an AutoencoderKL alone goes to --vae, or "
                "to --autoencoder of msf train)"
            )
        raise CheckpointError(f"{source} has no model_index.json; wanted: a DiTPipeline folder, or a file of weights")
    return _read_pipeline(source), options.autoencoder or source / "vae"


def _read_pipeline(folder: Path) -> ImportedDenoiser:
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "DiTPipeline":
        class_name = index.get("_class_name")
        raise CheckpointError(f"{folder / 'model_index.json'}: _class_name is {class_name!r}; wanted: DiTPipeline")
    scheduler = read_config(SchedulerConfig, folder / "scheduler" / "scheduler_config.json")
    config, state = read_transformer(folder / "transformer")
    return ImportedDenoiser(
        kind="diffusers' DiTPipeline",
        config=config,
        state=state,
        process=scheduler.process,
        solver="ddim",
        guidance_scale=4.0,
        guidance={},
        id2label=index.get("id2label"),
        files=(folder / "transformer" / WEIGHTS_NAME,),
    )


def _read_file(file: Path, layout: Layout, num_heads: int | None) -> ImportedDenoiser:
    config, state = read_denoiser(read_checkpoint(file), layout, num_heads)
    process, solver, guidance_scale, guidance = _SAMPLING[layout]
    return ImportedDenoiser(layout, config, state, process, solver, guidance_scale, guidance, None, (file,))


def _model_config(denoiser: ImportedDenoiser, autoencoder: ImportedAutoencoder) -> ModelConfig:
    """Return the config of the two together. Raises ValidationError unless they fit."""
    size = denoiser.config.size * autoencoder.config.downsampling
    return ModelConfig.model_validate(
        {
            "description": f"imported from {denoiser.kind}",
            "image": {"size": size, "channels": autoencoder.config.kl["out_channels"]},
            "autoencoder": autoencoder.config,
            "stages": [
                {
                    "name": Stage.DENOISE,
                    "denoiser": denoiser.config,
                    "statistics": autoencoder.statistics,
                    "default_num_steps": NUM_STEPS,
                    "guidance": denoiser.guidance,
                }
            ],
            "process": denoiser.process,
            "sampling": {"solver": denoiser.solver, "default_guidance_scale": denoiser.guidance_scale},
        }
    )


def _publish(repository: Path, name: str, model: MsfModel, labels: Sequence[str], card: str) -> Path:
    """Write the model into a hidden folder, which a repository skips, and move it into place."""
    repository.mkdir(parents=True, exist_ok=True)
    hidden = Path(mkdtemp(prefix=f".import-{name}-", dir=repository))
    try:
        save_version(hidden, name, "1", model, labels, precision="float32")
        (hidden / name / "README.md").write_text(card)
        read_version(hidden, name, "1")
        (hidden / name).rename(repository / name)
    finally:
        shutil.rmtree(hidden)
    return repository / name / "1"


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
