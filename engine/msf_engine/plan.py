"""Plans: compiled denoising steps and decoders, each for fixed batch sizes (buckets)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.config import ModelConfig
    from msf_engine.denoiser import DenoiserShape

PlanKind = tuple[Stage, bool]  # stage, guided
Input = tuple[tuple[int, ...], Literal["float32", "int64"]]  # shape of a row, dtype


class Plan(Protocol):
    """A network that is ready to run: tensors of one of its buckets' batch in, tensors out, all on the host."""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True)
class PlanSpec:
    """Specification of a plan: a stage of a model version at some buckets. `inputs` are in the order of the call."""

    model: str  # "name:version", for people
    model_digest: str
    stage: Stage
    guided: bool
    buckets: tuple[int, ...]
    inputs: tuple[Input, ...]

    def __str__(self) -> str:
        buckets = ",".join(str(bucket) for bucket in self.buckets)
        return f"{self.stage}{' guided' if self.guided else ''} x{buckets}"

    @property
    def kind(self) -> PlanKind:
        return self.stage, self.guided

    def example(self, batch: int) -> tuple[Tensor, ...]:
        """Return zeros in the shape of a batch."""
        return tuple(torch.zeros(batch, *shape, dtype=getattr(torch, dtype)) for shape, dtype in self.inputs)


def stage_inputs(config: ModelConfig, stage: Stage) -> tuple[Input, ...]:
    """Return the inputs of a stage's plans."""
    return decode_inputs(config) if stage is Stage.DECODE else step_inputs(config.stage(stage).denoiser)


def step_inputs(denoiser: DenoiserShape) -> tuple[Input, ...]:
    """Return the inputs of `StepModule.forward`."""
    side = denoiser.size
    latent = (denoiser.in_channels, side, side)
    tensors = (latent, latent, (denoiser.cond_channels, side, side), (denoiser.width,))
    return (
        *((shape, "float32") for shape in tensors),
        ((), "int64"),
        *(((), "float32") for _ in range(4)),
    )


def decode_inputs(config: ModelConfig) -> tuple[Input, ...]:
    """Return the inputs of `DecodeModule.forward`."""
    side, channels = config.latent_size // 2, config.latent_channels
    return ((channels, side, side), "float32"), ((3 * channels, side, side), "float32")
