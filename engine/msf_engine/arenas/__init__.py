"""Arenas: the state of all active samples of a model version, where the device computes.

A step batch is a few numbers per row: rows are gathered from the arenas, evaluated by the plan, guided and updated in
float32, and scattered back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise
from msf_engine.step_table import StepTable
from msf_scheduler.stage import Stage

Indices = NDArray[np.intp]


@dataclass(eq=False)
class StepRows:
    """A step batch of S samples, of which the first `num_guided` take a second row, with the null label.

    `steps` (S,) are rows of the stage's `table`. `completes` are the slots whose stage ends with this step. The arenas
    set `finite` (S,), and the `seconds` that the device took, when the batch has been computed.
    """

    stage: Stage
    bucket: int
    slots: Indices
    num_guided: int
    table: StepTable
    steps: Indices
    labels: NDArray[np.int64]  # (S + num_guided,)
    guidance_scales: NDArray[np.float32]  # (num_guided,)
    completes: Indices
    finite: NDArray[np.bool_] | None = None
    seconds: float = 0.0

    @property
    def num_rows(self) -> int:
        """Rows that are not padding."""
        return len(self.labels)

    @property
    def samples(self) -> Indices:
        """Position in `slots` of each row's sample; padding repeats the first."""
        return _samples_of_rows(len(self.slots), self.num_guided, self.bucket)


@lru_cache(maxsize=4096)
def _samples_of_rows(num_samples: int, num_guided: int, bucket: int) -> Indices:
    samples = np.zeros(bucket, np.intp)
    samples[:num_samples] = np.arange(num_samples)
    samples[num_samples : num_samples + num_guided] = np.arange(num_guided)
    return samples


@dataclass(eq=False)
class DecodeRows:
    """A batch of complete samples. The arenas set `pixels` (S, H, W, channels) and `seconds` when it is computed."""

    bucket: int
    slots: Indices
    stage: Literal[Stage.DECODE] = Stage.DECODE
    pixels: NDArray[np.uint8] | None = None
    seconds: float = 0.0


class Arenas(Protocol):
    """State by slot: each denoising stage's latents with its last output, and the condition of a second stage.

    Batches are computed in the order in which they are started; `start` may return before its batch is done. With
    `queues_batches`, one may be started while another is computed.
    """

    queues_batches: bool

    def write(self, slots: Indices, noise: SampleNoise) -> None:
        """Begin samples in slots that no batch under way has."""
        ...

    def start(self, rows: StepRows | DecodeRows) -> None:
        """Begin to compute a batch. Raises PlanError, as `wait` does."""
        ...

    def wait(self, rows: StepRows | DecodeRows) -> None:
        """Return once the batch's result is set."""
        ...

    def preview(
        self, slots: Indices, estimates: NDArray[np.float32], is_blank: NDArray[np.bool_], bucket: int
    ) -> Array:
        """Decode the last stage's p x - q d, once all batches are done: (S, H, W, channels) uint8.

        `estimates` (S, 2) are p and q; samples of which `is_blank` (S,) is true have `blank_latents` in their place.
        """
        ...
