"""What a plan is: a compiled step, or the decoder, for named batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.config import ModelConfig
    from msf_engine.denoiser import DenoiserShape

Input = tuple[tuple[int, ...], Literal["float32", "int64"]]


class Plan(Protocol):
    """A compiled artefact, ready to run: tensors of one of its buckets' batch in, tensors out, all on the host."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class PlanSpec:
    """One plan: a stage of a model version at its buckets. `inputs` are shapes without the batch, in order."""

    model: str  # "name:version", for people
    model_digest: str
    stage: Stage
    guided: bool
    buckets: tuple[int, ...]
    inputs: tuple[Input, ...]

    def __str__(self) -> str:
        buckets = ",".join(str(bucket) for bucket in self.buckets)
        return f"{self.stage}{' guided' if self.guided else ''} x{buckets}"

    def example(self, batch: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(batch, *shape, dtype=getattr(torch, dtype)) for shape, dtype in self.inputs)


def step_inputs(denoiser: DenoiserShape) -> tuple[Input, ...]:
    """The inputs of `StepModule.forward`."""
    side = denoiser.size
    latent = (denoiser.in_channels, side, side)
    tensors = (latent, latent, (denoiser.cond_channels, side, side), (denoiser.width,))
    return (
        *((shape, "float32") for shape in tensors),
        ((), "int64"),
        *(((), "float32") for _ in range(4)),
    )


def decode_inputs(config: ModelConfig) -> tuple[Input, ...]:
    """The inputs of `DecodeModule.forward`."""
    side, channels = config.latent_size // 2, config.latent_channels
    return ((channels, side, side), "float32"), ((3 * channels, side, side), "float32")
