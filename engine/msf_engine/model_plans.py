"""All plans of one model version, ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msf_engine.config import ModelConfig
from msf_engine.errors import PlanError
from msf_engine.plan import Array, Plan, run
from msf_engine.sampling import Latents, to_pixels
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage


@dataclass(frozen=True)
class ModelPlans:
    """A model version ready to run: a plan for each stage, and what the host computes itself.

    `buckets` are the numbers of rows, ascending, at which a stage's plan runs; `strict` are those in which a row's
    bytes do not depend on its batch, and `seconds` how long a batch took when the plan was validated. `fingerprint` is
    the SHA-256 of everything that the images depend on, `backend` the backend's. `num_loaded` plans came from the
    cache, `num_built` were not in it.
    """

    config: ModelConfig
    buckets: Mapping[Stage, tuple[int, ...]]
    by_stage: Mapping[Stage, Plan]
    strict: Mapping[Stage, tuple[int, ...]]
    seconds: Mapping[tuple[Stage, int], float]
    fingerprint: str
    time_embeddings: Mapping[Stage, HostTimeEmbedding]
    backend: str
    needs_warm_up: bool = False
    num_loaded: int = 0
    num_built: int = 0

    def decode(self, latents: Sequence[Latents], *, strict: bool = False) -> NDArray[np.uint8]:
        """Return the images (B, H, W, channels) of all stages' latents (B, C, h, w). Raises PlanError as `run` does."""
        return to_pixels(self.run(Stage.DECODE, latents, strict=strict))

    def run(self, stage: Stage, inputs: Sequence[Array], *, strict: bool = False) -> Array:
        """Run any number of rows. Raises PlanError when `strict` and the stage has no strict bucket."""
        buckets = (self.strict if strict else self.buckets)[stage]
        if not buckets:
            raise PlanError(f"no strict images: a row's bytes in stage {stage} depend on its batch at every bucket")
        return run_rows(self.by_stage[stage], buckets, inputs)


def run_rows(plan: Plan, buckets: Sequence[int], inputs: Sequence[Array]) -> Array:
    """Run any number of rows: batches of the largest bucket, the rest in the smallest that holds it."""
    outputs = []
    for start in range(0, len(inputs[0]), buckets[-1]):
        batch = [array[start : start + buckets[-1]] for array in inputs]
        num_rows = len(batch[0])
        indices = padded(np.arange(num_rows), smallest_bucket(buckets, num_rows))
        outputs.append(run(plan, [array[indices] for array in batch])[:num_rows])
    return np.concatenate(outputs)


def smallest_bucket(buckets: Sequence[int], num_rows: int) -> int:
    """Return the smallest bucket, of ascending ones, that holds this many rows."""
    return next(bucket for bucket in buckets if bucket >= num_rows)


def padded(rows: Array, bucket: int) -> Array:
    """Fill a bucket with copies of the first row: padding must be as harmless as a sample."""
    return rows if len(rows) == bucket else np.concatenate((rows, np.repeat(rows[:1], bucket - len(rows), axis=0)))
