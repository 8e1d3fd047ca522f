"""The model repository: `<model>/config.json`, `labels.json` and `<version>/*.safetensors` with their `SHA256SUMS`.

The networks are `autoencoder.safetensors` and one file for each denoising stage, of its name.

A version's own `config.json`, if there is one, replaces the model's. Nothing is ever unpickled, and what is used of a
file is what its checksum was verified of. Torch is imported only to load or save weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from msf_engine.config import ModelConfig
from msf_engine.errors import ModelRepositoryError
from msf_engine.int8_weights import from_int8, to_int8
from msf_engine.regular_files import open_regular, read_small
from msf_engine.repository_scan import NAME, VERSION, list_versions, scan
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from msf_engine.model import MsfModel

__all__ = ["NAME", "ModelVersion", "find_models", "list_versions", "read_version", "save_version", "weight_parts"]

_DTYPES = {"F16": np.float16, "F32": np.float32, "I8": np.int8}  # of weights, besides bfloat16


@dataclass(frozen=True)
class ModelVersion:
    """One version in a repository: its validated description, without its weights."""

    name: str
    version: str
    folder: Path
    config: ModelConfig
    labels: tuple[str, ...]
    digest: str  # SHA-256 over the version's SHA256SUMS: names weights, config and labels together
    created: int  # Unix seconds

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"

    def has_changed(self) -> bool:
        """Return whether the folder differs from what was read."""
        try:
            return hashlib.sha256(_read_text(self.folder / "SHA256SUMS")).hexdigest() != self.digest
        except ModelRepositoryError:
            return True

    def load(self) -> MsfModel:
        """Build the networks with their weights in float32. Raises ModelRepositoryError that names the damaged file."""
        from msf_engine.model import MsfModel  # imports diffusers, which takes seconds; cached plans do without

        files = {part: f"{part}.safetensors" for part in weight_parts(self.config.denoising_stages)}
        weights = self._verified(files.values())
        try:
            model = MsfModel(self.config)
        except Exception as error:  # diffusers checks the arguments that it is given in many ways
            raise ModelRepositoryError(f"{self}: its config.json describes no network: {error}") from error
        for part, name in files.items():
            _load_part(model.get_submodule(part), weights.pop(name), self.folder / name)
        return model.eval().requires_grad_(False)

    def read_time_embeddings(self) -> dict[Stage, dict[str, NDArray[np.float32]]]:
        """Read the weights that the host computes with, by denoising stage and name. Raises as `load` does."""
        names = {stage: f"{stage}.safetensors" for stage in self.config.denoising_stages}
        weights = self._verified(names.values())
        return {stage: _read_arrays(weights[name], "time.", self.folder / name) for stage, name in names.items()}

    def verify(self) -> None:
        """Verify all files against SHA256SUMS. Raises ModelRepositoryError that names the first damaged one."""
        self._verified(())

    def network_digest(self, stage: Stage) -> str:
        """Return the SHA-256 that names a stage's network, whatever the model is called: its weights and config."""
        config = self.config
        settings: list[BaseModel]
        if stage is Stage.DECODE:
            part = "autoencoder"
            settings = [config.autoencoder, config.image, *(each.statistics for each in config.stages)]
        else:
            part, settings = str(stage), [config.stage(stage).denoiser]
        digest = self._read_sums()[f"{part}.safetensors"]
        parts = [digest, *(each.model_dump_json() for each in settings)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _verified(self, names: Collection[str]) -> dict[str, bytes]:
        """Verify all files, and return the contents of those in `names`. Raises as `verify`."""
        contents = {}
        for name, expected in self._read_sums().items():
            if name in names:
                contents[name] = _read_bytes(self.folder / name)
                digest = hashlib.sha256(contents[name]).hexdigest()
            else:
                digest = _sha256(self.folder / name)
            if digest != expected:
                sums = self.folder / "SHA256SUMS"
                raise ModelRepositoryError(f"{self.folder / name} is damaged: its SHA-256 differs from {sums}")
        return contents

    def _read_sums(self) -> dict[str, str]:
        """Return the SHA-256 of the files by name. Raises ModelRepositoryError unless all weights are listed."""
        file = self.folder / "SHA256SUMS"
        lines = _read_text(file).decode(errors="replace").splitlines()
        digests = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for part in weight_parts(self.config.denoising_stages):
            if f"{part}.safetensors" not in digests:
                raise ModelRepositoryError(f"{file} does not list {part}.safetensors")
        return digests


def weight_parts(denoising_stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return the names of a model's networks, each with a safetensors file."""
    return ("autoencoder", *denoising_stages)


def find_models(repository: Path) -> list[ModelVersion]:
    """Read all versions of all models, newest last. Raises ModelRepositoryError if there is none or one is damaged."""
    return [read_version(repository, *key) for key in list_versions(repository)]


def read_version(repository: Path, name: str, version: str | None = None) -> ModelVersion:
    """Read one version, the newest by default, and validate its config and labels. Raises ModelRepositoryError."""
    contents = scan(repository)
    versions = [each for model, each in contents.versions if model == name]
    chosen = version or (versions[-1] if versions else "")
    if (name, chosen) not in contents.versions:
        reason = contents.refusals.get((name, chosen))
        if reason is not None:
            raise ModelRepositoryError(f"{repository / name / chosen}: {reason}")
        if not versions:
            raise ModelRepositoryError(f"model {name!r} is not in {repository}")
        raise ModelRepositoryError(f"model {name!r} has no version {version!r}; it has {', '.join(versions)}")
    model, folder = repository / name, repository / name / chosen
    own_config = folder / "config.json"
    config = _read_config(own_config if own_config.exists() else model / "config.json")
    labels = _read_labels(model / "labels.json", config.num_classes)
    sums = folder / "SHA256SUMS"
    digest = hashlib.sha256(_read_text(sums)).hexdigest()
    return ModelVersion(name, chosen, folder, config, labels, digest, int(sums.stat().st_mtime))


def next_version(repository: Path, name: str, labels: Sequence[str]) -> str:
    """Return the number of a model's next version. Raises ModelRepositoryError if its labels are others."""
    if not repository.is_dir() or not any(repository.iterdir()):
        return "1"
    versions = [int(version) for model, version in list_versions(repository) if model == name]
    if not versions:
        return "1"
    if read_version(repository, name).labels != tuple(labels):
        raise ModelRepositoryError(f"model {name!r} in {repository} has other labels; choose another --name")
    return str(max(versions) + 1)


def save_version(
    repository: Path,
    name: str,
    version: str,
    model: MsfModel,
    labels: Sequence[str],
    *,
    precision: Literal["float32", "bfloat16", "int8"] = "bfloat16",
) -> Path:
    """Write a model as a new version with weights of this precision. Return the version's folder."""
    from safetensors.torch import save_file

    if not NAME.fullmatch(name) or not VERSION.fullmatch(version):
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
    parts = weight_parts(model.config.denoising_stages)
    weights = [folder / f"{part}.safetensors" for part in parts]
    for part, file in zip(parts, weights, strict=True):
        save_file(_weights(model.get_submodule(part), precision), file)
    covered = [config_file, labels_file, *weights]
    lines = (f"{_sha256(file)}  {os.path.relpath(file, folder)}\n" for file in covered)
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def _read_arrays(content: bytes, prefix: str, file: Path) -> dict[str, NDArray[np.float32]]:
    """Read the tensors whose names begin with `prefix`; numpy has no bfloat16, which is the upper half of float32."""
    from safetensors import SafetensorError, deserialize

    arrays = {}
    try:
        for name, tensor in deserialize(content):  # type: ignore[no-untyped-call]
            if name.startswith(prefix):
                if tensor["dtype"] == "BF16":
                    values = (np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
                else:
                    values = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]])
                arrays[name] = values.astype(np.float32).reshape(tensor["shape"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelRepositoryError(f"{file} does not hold this model's weights: {error}") from error
    return from_int8(arrays)


def _load_part(module: nn.Module, content: bytes, file: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights = {name: tensor.float() for name, tensor in from_int8(load(content)).items()}
        module.load_state_dict(weights)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ModelRepositoryError(f"{file} does not hold this model's weights: {error}") from error
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ModelRepositoryError(f"{file}: weight {name} is not finite")


def _weights(module: nn.Module, precision: str) -> dict[str, Tensor]:
    import torch

    weights = module.state_dict()
    if precision == "float32":
        return {name: weight.contiguous() for name, weight in weights.items()}
    stored = to_int8(weights) if precision == "int8" else weights
    return {
        name: (tensor.to(torch.bfloat16) if name in weights and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in stored.items()
    }


def _read_config(file: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate_json(_read_text(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelRepositoryError(f"{file}: {where or 'config'}: {first['msg']}") from error


def _read_labels(file: Path, num_classes: int) -> tuple[str, ...]:
    try:
        labels = json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise ModelRepositoryError(f"{file} is not JSON: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) and _is_label(label) for label in labels):
        raise ModelRepositoryError(
            f"{file} must be a list of class names, none of them blank or with control characters"
        )
    if len(labels) != num_classes or len(set(labels)) != num_classes:
        raise ModelRepositoryError(f"{file} has {len(labels)} names; the model has {num_classes} distinct classes")
    return tuple(labels)


def _is_label(text: str) -> bool:
    """Return whether every client can be sent this name: not blank, no control characters, no half of a surrogate."""
    return bool(text.strip()) and not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _read_text(file: Path) -> bytes:
    try:
        return read_small(file)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _read_bytes(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _sha256(file: Path) -> str:
    try:
        with open_regular(file) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError | ValueError) -> ModelRepositoryError:
    return ModelRepositoryError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")
