"""The model repository: `<model>/config.json`, `labels.json` and `<version>/*.safetensors` with their `SHA256SUMS`.

A version's own `config.json`, if there is one, replaces the model's. Nothing is ever unpickled, and every file's
checksum is verified before it is used. Torch is imported only to load or save weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from msf_engine.config import ModelConfig
from msf_engine.errors import ModelRepositoryError
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from msf_engine.model import MsfModel

PARTS = ("autoencoder", "base", "residual")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelVersion:
    """One version in a repository: its validated description, without its weights."""

    name: str
    version: str
    folder: Path
    config: ModelConfig
    labels: tuple[str, ...]
    digest: str  # SHA-256 over the version's SHA256SUMS: names weights, config and labels together

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    def has_changed(self) -> bool:
        """Return whether the folder differs from what was read."""
        try:
            return _sha256(self.folder / "SHA256SUMS") != self.digest
        except ModelRepositoryError:
            return True

    def load(self) -> MsfModel:
        """Build the networks with their weights in float32. Raises ModelRepositoryError that names the damaged file."""
        from msf_engine.model import MsfModel  # imports diffusers, which takes seconds; cached plans do without

        verify(self.folder)
        model = MsfModel(self.config)
        for part in PARTS:
            _load_part(model.get_submodule(part), self.folder / f"{part}.safetensors")
        return model.eval().requires_grad_(False)

    def read_time_embeddings(self) -> dict[Stage, dict[str, NDArray[np.float32]]]:
        """Read the weights that the host computes with, by denoising stage and name. Raises as `load` does."""
        verify(self.folder)
        files = {stage: self.folder / f"{stage}.safetensors" for stage in (Stage.BASE, Stage.RESIDUAL)}
        return {stage: _read_arrays(file, "time.") for stage, file in files.items()}

    def network_digest(self, stage: Stage) -> str:
        """Return the SHA-256 that names a stage's network, whatever the model is called: its weights and config."""
        config = self.config
        settings: list[BaseModel]
        if stage is Stage.DECODE:
            part = "autoencoder"
            settings = [config.autoencoder, config.image, config.base.statistics, config.residual.statistics]
        else:
            part, settings = str(stage), [config.stage(stage).denoiser]
        parts = [_read_sums(self.folder)[f"{part}.safetensors"], *(each.model_dump_json() for each in settings)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def find_models(repository: Path) -> list[ModelVersion]:
    """Read all versions of all models, newest last. Raises ModelRepositoryError if there is none or one is damaged."""
    return [read_version(repository, *key) for key in list_versions(repository)]


def list_versions(repository: Path) -> list[tuple[str, str]]:
    """List the name and version of every model, newest last. Raises ModelRepositoryError if there is none."""
    if not repository.is_dir():
        raise ModelRepositoryError(f"model repository {repository} is not a folder")
    keys = [
        (model.name, version.name)
        for model in sorted(repository.iterdir())
        if model.is_dir() and not model.name.startswith(".")
        for version in _version_folders(model)
    ]
    if not keys:
        raise ModelRepositoryError(f"model repository {repository} has no model (no <model>/<version>/ folder)")
    return keys


def read_version(repository: Path, name: str, version: str | None = None) -> ModelVersion:
    """Read one version, the newest by default, and validate its config and labels. Raises ModelRepositoryError."""
    model = repository / name
    if not NAME.fullmatch(name) or not model.is_dir():
        raise ModelRepositoryError(f"model {name!r} is not in {repository}")
    versions = _version_folders(model)
    if not versions:
        raise ModelRepositoryError(f"model {name!r} in {repository} has no version folder")
    folder = next((v for v in versions if v.name == version), None) if version else versions[-1]
    if folder is None:
        names = ", ".join(v.name for v in versions)
        raise ModelRepositoryError(f"model {name!r} has no version {version!r}; it has {names}")
    own_config = folder / "config.json"
    config = _read_config(own_config if own_config.exists() else model / "config.json")
    labels = _read_labels(model / "labels.json", config.num_classes)
    return ModelVersion(name, folder.name, folder, config, labels, _sha256(folder / "SHA256SUMS"))


def save_version(repository: Path, name: str, version: str, model: MsfModel, labels: Sequence[str]) -> Path:
    """Write a model as a new version, weights as bfloat16. Return the version's folder."""
    from safetensors.torch import save_file

    if not NAME.fullmatch(name) or not version.isdigit():
        raise ModelRepositoryError(f"model {name!r} version {version!r}; allowed: a-z 0-9 . _ - and an integer")
    folder = repository / name / version
    folder.mkdir(parents=True, exist_ok=True)
    config_file = repository / name / "config.json"
    config_text = model.config.model_dump_json(indent=2) + "\n"
    if config_file.exists() and config_file.read_text() != config_text:
        config_file = folder / "config.json"
    config_file.write_text(config_text)
    labels_file = repository / name / "labels.json"
    labels_file.write_text(json.dumps(list(labels), indent=2) + "\n")
    weights = [folder / f"{part}.safetensors" for part in PARTS]
    for part, file in zip(PARTS, weights, strict=True):
        save_file(_weights(model.get_submodule(part)), file)
    covered = [config_file, labels_file, *weights]
    lines = (f"{_sha256(file)}  {os.path.relpath(file, folder)}\n" for file in covered)
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def verify(folder: Path) -> None:
    """Verify the files of a version's SHA256SUMS. Raises ModelRepositoryError that names the first damaged one."""
    for name, digest in _read_sums(folder).items():
        file = folder / name
        if _sha256(file) != digest:
            raise ModelRepositoryError(f"{file} is damaged: its SHA-256 differs from {folder / 'SHA256SUMS'}")


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a version's files by name. Raises ModelRepositoryError unless it has all weights."""
    lines = _read_bytes(folder / "SHA256SUMS").decode(errors="replace").splitlines()
    digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for part in PARTS:
        if f"{part}.safetensors" not in digests:
            raise ModelRepositoryError(f"{folder / 'SHA256SUMS'} does not list {part}.safetensors")
    return digests


def _read_arrays(file: Path, prefix: str) -> dict[str, NDArray[np.float32]]:
    """Read the tensors whose names begin with `prefix`; numpy has no bfloat16, which is the upper half of float32."""
    from safetensors import SafetensorError, deserialize

    arrays = {}
    try:
        for name, tensor in deserialize(_read_bytes(file)):  # type: ignore[no-untyped-call]
            if name.startswith(prefix):
                if tensor["dtype"] == "BF16":
                    values = (np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
                else:
                    values = np.frombuffer(tensor["data"], {"F16": np.float16, "F32": np.float32}[tensor["dtype"]])
                arrays[name] = values.astype(np.float32).reshape(tensor["shape"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelRepositoryError(f"{file} does not hold this model's weights: {error}") from error
    return arrays


def _load_part(module: nn.Module, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    except (SafetensorError, RuntimeError) as error:
        raise ModelRepositoryError(f"{file} does not hold this model's weights: {error}") from error


def _weights(module: nn.Module) -> dict[str, Tensor]:
    import torch

    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in module.state_dict().items()}


def _version_folders(model: Path) -> list[Path]:
    return sorted((v for v in model.iterdir() if v.is_dir() and v.name.isdigit()), key=lambda v: int(v.name))


def _read_config(file: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(_read_bytes(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelRepositoryError(f"{file}: {where or 'config'}: {first['msg']}") from error


def _read_labels(file: Path, num_classes: int) -> tuple[str, ...]:
    try:
        labels = json.loads(_read_bytes(file))
    except ValueError as error:
        raise ModelRepositoryError(f"{file} is not JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelRepositoryError(f"{file} must be a list of class names")
    if len(labels) != num_classes or len(set(labels)) != num_classes:
        raise ModelRepositoryError(f"{file} has {len(labels)} names; the model has {num_classes} distinct classes")
    return tuple(labels)


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelRepositoryError(f"{file} cannot be read: {error.strerror}") from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(_read_bytes(file)).hexdigest()
