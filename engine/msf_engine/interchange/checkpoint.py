"""Checkpoints of other projects: files of named tensors, each of which is taken exactly once.

Errors are one line that names the file, the tensor, what was found and what is wanted.
"""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from msf_engine.errors import CheckpointError
from msf_engine.regular_files import read_small

Model = TypeVar("Model", bound=BaseModel)

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_PICKLES = (".pt", ".pth")
_STATES = ("ema", "model", "state_dict")  # of a training checkpoint, the best first
_MAX_LISTED = 5


class Checkpoint:
    """Tensors of a file by name."""

    def __init__(self, file: Path, tensors: Mapping[str, Tensor]) -> None:
        self.file = file
        self._tensors = dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str, num_dims: int) -> tuple[int, ...]:
        """Return the shape of a tensor, which is not taken yet. Raises CheckpointError."""
        shape = tuple(self._tensor(name).shape)
        if len(shape) != num_dims:
            raise CheckpointError(f"{self.file}: tensor {name} has shape {shape}; wanted: {num_dims} dimensions")
        return shape

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor of this shape, as finite floating-point numbers, and remove it. Raises CheckpointError."""
        tensor = self._tensor(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{self.file}: tensor {name} has shape {tuple(tensor.shape)}; wanted: {shape}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.file}: tensor {name} is {tensor.dtype}; wanted: floating-point numbers")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{self.file}: tensor {name} is not finite; wanted: finite numbers")
        del self._tensors[name]
        return tensor.float() if tensor.dtype == torch.float64 else tensor

    def drop(self, prefix: str) -> None:
        """Remove tensors that serve only for training."""
        self._tensors = {name: tensor for name, tensor in self._tensors.items() if not name.startswith(prefix)}

    def count(self, prefix: str) -> int:
        """Return the number of blocks `prefix`0, `prefix`1 and so on."""
        numbers = {name.removeprefix(prefix).partition(".")[0] for name in self._tensors if name.startswith(prefix)}
        return len(numbers)

    def finish(self) -> None:
        """Raise CheckpointError if a tensor has not been taken."""
        if self._tensors:
            names = _listed(self._tensors)
            raise CheckpointError(
                f"{self.file}: {len(self._tensors)} unknown tensors: {names}; wanted: the model's alone"
            )

    def _tensor(self, name: str) -> Tensor:
        if name not in self._tensors:
            names = _listed(self._tensors) or "none"
            raise CheckpointError(f"{self.file}: tensor {name} is missing; of those left, it has {names}")
        return self._tensors[name]


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a safetensors file, or one of torch that holds nothing but tensors and settings. Raises CheckpointError."""
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file; {_instead_of(file)}")
    if file.suffix == ".safetensors":
        try:
            return Checkpoint(file, load_file(file))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
    if file.suffix in _PICKLES:
        return Checkpoint(file, _state(file, _read_pickle(file)))
    if file.suffix == ".bin":
        raise CheckpointError(_refusal(file))
    raise CheckpointError(f"{file}: files of type {file.suffix!r} are not read; allowed: .safetensors, .pt, .pth")


def read_config(model: type[Model], file: Path) -> Model:
    """Read a JSON file of settings. Raises CheckpointError that names the first field that is not supported."""
    try:
        return model.model_validate(read_json(file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{file}: {where or 'settings'} is {first['input']!r}: {first['msg']}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError."""
    try:
        content = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds {type(content).__name__}; wanted: an object")
    return content


def _read_pickle(file: Path) -> Any:
    """Read a file with torch's restricted unpickler, which runs no code; settings of a training are a Namespace."""
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about files that are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{file} holds more than tensors, or is damaged; wanted: tensors alone: {reason}"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{file} is not a whole file of torch: {reason}") from error


def _state(file: Path, content: Any) -> dict[str, Tensor]:
    """Return the tensors of a file: its averaged weights, if it is a training checkpoint."""
    if isinstance(content, dict):
        content = next((content[name] for name in _STATES if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{file} holds {type(content).__name__}; wanted: tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: {name} is {type(value).__name__}; wanted: a tensor")
    return content


def _instead_of(file: Path) -> str:
    """Return what is wanted in the place of a missing file, given what its folder holds."""
    pickled = file.with_suffix(".bin")
    if pickled.is_file():
        return _refusal(pickled)
    variants = sorted(other.name for other in file.parent.glob("*.safetensors*"))
    return f"wanted: this file (the folder has {_listed(variants)})" if variants else "wanted: this file"


def _refusal(file: Path) -> str:
    return (
        f"{file} is a pickle, which can run any code when it is read; wanted: {WEIGHTS_NAME}. Where you trust it, "
        "load it with diffusers and write it by save_pretrained(FOLDER)"
    )


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _MAX_LISTED} more" if len(ordered) > _MAX_LISTED else ""
    return ", ".join(ordered[:_MAX_LISTED]) + more
