"""Plans: compiled networks that are ready to run, one for each stage of a model version."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.config import ModelConfig
    from msf_engine.denoiser import DenoiserShape

Array = NDArray[Any]
Input = tuple[tuple[int, ...], Literal["float32", "int64"]]  # shape of a row, dtype


class Plan(Protocol):
    """A stage's network for batches of one of its buckets' rows. One batch at a time, but on any thread.

    A batch is written into the arrays of `inputs`, then started, then awaited: nothing is copied twice, and the host
    can work while the device computes.
    """

    def inputs(self, num_rows: int) -> tuple[Array, ...]:
        """Return the arrays (num_rows, ...) to fill with the next batch."""
        ...

    def start(self, num_rows: int) -> None:
        """Begin to compute. Raises PlanError, as `wait` does."""
        ...

    def wait(self) -> Array:
        """Return the output (num_rows, ...): valid until the next `start`."""
        ...


@dataclass(frozen=True)
class PlanSpec:
    """Specification of a plan. `inputs` are in the order of the network's arguments, `buckets` ascending."""

    model: str  # "name:version" of one model with this network, for people
    network_digest: str  # of weights and architecture
    stage: Stage
    buckets: tuple[int, ...]
    inputs: tuple[Input, ...]

    def __str__(self) -> str:
        return f"{self.stage} of {self.model}"

    def zeros(self, num_rows: int) -> tuple[Array, ...]:
        """Return inputs of zeros."""
        return tuple(np.zeros((num_rows, *shape), dtype) for shape, dtype in self.inputs)


class FunctionPlan:
    """A plan over a function of arrays, which computes while it is started."""

    def __init__(self, spec: PlanSpec, function: Callable[..., Array]) -> None:
        self._spec = spec
        self._function = function
        self._inputs: dict[int, tuple[Array, ...]] = {}
        self._output: Array = np.empty(0)

    def inputs(self, num_rows: int) -> tuple[Array, ...]:
        """Return arrays that are kept for this number of rows."""
        if num_rows not in self._inputs:
            self._inputs[num_rows] = self._spec.zeros(num_rows)
        return self._inputs[num_rows]

    def start(self, num_rows: int) -> None:
        """Call the function."""
        self._output = self._function(*self.inputs(num_rows))

    def wait(self) -> Array:
        """Return the function's result."""
        return self._output


def run(plan: Plan, inputs: Sequence[Array]) -> Array:
    """Run a batch of one of the plan's buckets, and return its output in memory of its own."""
    num_rows = len(inputs[0])
    for array, values in zip(plan.inputs(num_rows), inputs, strict=True):
        np.copyto(array, values)
    plan.start(num_rows)
    return plan.wait().copy()


def stage_inputs(config: ModelConfig, stage: Stage) -> tuple[Input, ...]:
    """Return the inputs of a stage's plan."""
    return decode_inputs(config) if stage is Stage.DECODE else denoiser_inputs(config.stage(stage).denoiser)


def denoiser_inputs(denoiser: DenoiserShape) -> tuple[Input, ...]:
    """Return the inputs of `Denoiser.forward`: x, time embedding, labels and, if there is one, the condition."""
    side = denoiser.size
    inputs: tuple[Input, ...] = (
        ((denoiser.in_channels, side, side), "float32"),
        ((denoiser.width,), "float32"),
        ((), "int64"),
    )
    return (*inputs, ((denoiser.cond_channels, side, side), "float32")) if denoiser.cond_channels else inputs


def decode_inputs(config: ModelConfig) -> tuple[Input, ...]:
    """Return the inputs of `DecodeModule.forward`: the latents of each denoising stage."""
    shapes = (stage.denoiser for stage in config.stages)
    return tuple(((shape.in_channels, shape.size, shape.size), "float32") for shape in shapes)
