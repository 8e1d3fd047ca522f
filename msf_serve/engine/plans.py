"""What a plan is compiled for, and the cache that keeps plans between starts."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from msf_serve.engine.config import ModelConfig, Stage
from msf_serve.engine.errors import PlanError

logger = logging.getLogger(__name__)

Input = tuple[tuple[int, ...], Literal["float32", "int64"]]
_SOURCES = ("autoencoder.py", "backends/openvino.py", "denoiser.py", "factorization.py", "model.py")


@dataclass(frozen=True)
class PlanSpec:
    """One plan: a stage of a model version at one bucket. `inputs` are shapes without the batch, in order."""

    model_digest: str
    stage: Stage
    guided: bool
    bucket: int
    inputs: tuple[Input, ...]

    def __str__(self) -> str:
        return f"{self.stage}{' guided' if self.guided else ''} x{self.bucket}"

    def at_bucket(self, bucket: int) -> Self:
        return replace(self, bucket=bucket)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(batch, *shape, dtype=getattr(torch, dtype)) for shape, dtype in self.inputs)


def step_spec(config: ModelConfig, digest: str, stage: Stage, *, guided: bool, bucket: int) -> PlanSpec:
    """The plan of one denoising step; the inputs are those of `StepModule.forward`."""
    denoiser = config.stage(stage).denoiser
    side = denoiser.size
    latent = (denoiser.in_channels, side, side)
    tensors = (latent, latent, (denoiser.cond_channels, side, side), (denoiser.width,))
    inputs: tuple[Input, ...] = (
        *((shape, "float32") for shape in tensors),
        ((), "int64"),
        *(((), "float32") for _ in range(4)),
    )
    return PlanSpec(digest, stage, guided, bucket, inputs)


def decode_spec(config: ModelConfig, digest: str, *, bucket: int) -> PlanSpec:
    """The plan that decodes; the inputs are those of `DecodeModule.forward`."""
    side, channels = config.latent_size // 2, config.latent_channels
    inputs: tuple[Input, ...] = (
        ((channels, side, side), "float32"),
        ((3 * channels, side, side), "float32"),
    )
    return PlanSpec(digest, Stage.DECODE, False, bucket, inputs)


class PlanCache:
    """Compiled plans in a folder, one folder each: `plan.bin` and `plan.json`. Safe with several processes.

    The key hashes the spec (the model's digest is in it), the backend's fingerprint and the source of the networks. A
    plan is written under a temporary name and renamed; its checksum is compared when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, spec: PlanSpec, fingerprint: str) -> bytes | None:
        """The artefact, or None when it is absent or damaged (a damaged one is removed)."""
        entry = self._entry(spec, fingerprint)
        try:
            description = json.loads((entry / "plan.json").read_bytes())
            artefact = (entry / "plan.bin").read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("cached plan %s is unreadable and is built again: %s", spec, error)
        else:
            if description.get("sha256") == hashlib.sha256(artefact).hexdigest():
                return artefact
            logger.warning("cached plan %s is damaged and is built again (%s)", spec, entry)
        shutil.rmtree(entry, ignore_errors=True)
        return None

    def put(self, spec: PlanSpec, fingerprint: str, artefact: bytes) -> None:
        """Keep an artefact. Another process that was faster wins. Raises PlanError where nothing can be written."""
        try:
            self._write(self._entry(spec, fingerprint), spec, fingerprint, artefact)
        except OSError as error:
            raise PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}") from error

    def _write(self, entry: Path, spec: PlanSpec, fingerprint: str, artefact: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        (partial / "plan.bin").write_bytes(artefact)
        description = {
            "plan": str(spec),
            "fingerprint": fingerprint,
            "size_bytes": len(artefact),
            "sha256": hashlib.sha256(artefact).hexdigest(),
        }
        (partial / "plan.json").write_text(json.dumps(description, indent=2) + "\n")
        try:
            os.rename(partial, entry)
        except OSError:
            if not entry.is_dir():
                raise
            shutil.rmtree(partial)

    def _entry(self, spec: PlanSpec, fingerprint: str) -> Path:
        key = json.dumps({"spec": asdict(spec), "fingerprint": fingerprint, "source": _source_digest()}, sort_keys=True)
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


@cache
def _source_digest() -> str:
    """SHA-256 of the code that defines and compiles the networks: what it makes after a change is another plan."""
    package = resources.files("msf_serve.engine")
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in _SOURCES)).hexdigest()
