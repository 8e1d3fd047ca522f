"""Validation of plans before they serve: agreement with eager float32, and what the bytes of a row depend on.

The inputs are a few fixed samples. They run through a plan in many arrangements: each in every row of the batch, next
to other samples, next to copies of itself (the padding that the executor uses), next to rows of NaN. The outputs are
compared with those of the network in eager float32, and with each other, byte by byte.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Array, Input, Plan, run
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

NUM_SAMPLES = 5  # odd, so that every sample meets rows of either parity
NUM_TIMED_RUNS = 5
SEED = 20250123
Neighbours = Literal["samples", "copies", "nan", "infinity", "zero", "huge"]
SHORT: tuple[Neighbours, ...] = ("samples", "copies", "nan")
FULL: tuple[Neighbours, ...] = (*SHORT, "infinity", "zero", "huge")
FULL_REPEATS = 50
_FILL_VALUES: Mapping[Neighbours, float] = {"nan": np.nan, "infinity": np.inf, "zero": 0.0, "huge": 1e4}

# Largest error of the worst sample: relative RMS of the velocity; grey levels of 255 for the decoder.
STEP_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 6e-2}
DECODE_TOLERANCE = {"fp32": 1.0, "fp16": 3.0, "bf16": 8.0}


@dataclass(frozen=True)
class Validation:
    """Outcome of a plan's validation at one bucket.

    `error` is against eager float32, in the unit of `tolerance`. `row_digest` is the SHA-256 of the samples' outputs if
    these are the same in every arrangement, else None. `output_digest` is that of the plainest arrangement, None where
    it varies; a loaded plan that yields another one is not the plan that was validated. The fastest run took `seconds`.
    """

    bucket: int
    error: float
    tolerance: float
    output_digest: str | None
    row_digest: str | None
    seconds: float
    verified_on: str
    verified_at: str  # ISO 8601 date

    @property
    def is_accepted(self) -> bool:
        return self.error <= self.tolerance


def tolerance(stage: Stage, precision: str) -> float:
    """Return the largest error that is accepted of a stage's plan."""
    return (DECODE_TOLERANCE if stage is Stage.DECODE else STEP_TOLERANCE)[precision]


@dataclass(frozen=True)
class ValidationInputs:
    """Inputs of a stage's plan for `NUM_SAMPLES` samples: arrays (NUM_SAMPLES, ...)."""

    arrays: tuple[Array, ...]

    def rows(self, samples: Sequence[int]) -> tuple[Array, ...]:
        """Return a batch of these samples."""
        return tuple(array[list(samples)] for array in self.arrays)


def make_validation_inputs(
    inputs: Sequence[Input], num_classes: int = 0, embed: HostTimeEmbedding | None = None
) -> ValidationInputs:
    """Return normal latents; for a denoiser with times from noise to data and labels that differ, one of them null.

    `inputs` are those of the stage's plan, `embed` a denoiser's time embedding.
    """
    arrays: list[Array] = []
    unit = (np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES
    for position, (shape, dtype) in enumerate(inputs):
        if dtype == "int64":
            arrays.append(np.append(np.arange(1, NUM_SAMPLES) * 7 % num_classes, num_classes))
        elif len(shape) == 1:
            assert embed is not None
            arrays.append(embed(1 - unit, np.full(NUM_SAMPLES, 0.1), (1 - unit) / 2, np.full(NUM_SAMPLES, 1.5)))
        else:
            arrays.append(
                np.stack(
                    [
                        gaussian_noise(shape, seed=SEED + position, index=index, stream=NoiseStream.BASE)
                        for index in range(NUM_SAMPLES)
                    ]
                )
            )
    return ValidationInputs(tuple(arrays))


@dataclass(frozen=True)
class EagerReference:
    """Output of a network itself for the validation inputs, in eager float32."""

    stage: Stage
    output: Array

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.output).all())

    @classmethod
    def of(cls, stage: Stage, network: nn.Module, inputs: ValidationInputs) -> EagerReference:
        """Run the network where its parameters are."""
        import torch

        device = next(network.parameters()).device
        with torch.inference_mode(), _without_tf32() if device.type == "cuda" else nullcontext():
            output: Tensor = network(*(torch.from_numpy(array).to(device) for array in inputs.arrays))
        return cls(stage, output.cpu().numpy())

    def error(self, output: Array, samples: Sequence[int]) -> float:
        """Return the worst row's error: relative RMS of the velocity, or the largest difference between levels."""
        expected = self.output[list(samples)].astype(np.float64).reshape(len(samples), -1)
        difference = output.astype(np.float64).reshape(len(samples), -1) - expected
        if self.stage is Stage.DECODE:
            worst = np.abs(difference).max()
        else:
            norms = np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
            worst = (np.linalg.norm(difference, axis=1) / norms).max()
        return float(worst) if np.isfinite(worst) else inf


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32 by the old flag: torch refuses to read it once the newer ones, as `cudnn.flags` sets, differ."""
    import torch

    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def output_digest(plan: Plan, inputs: ValidationInputs, bucket: int) -> str:
    """Return the SHA-256 of a plan's output in the plainest arrangement."""
    output = run(plan, inputs.rows([row % NUM_SAMPLES for row in range(bucket)]))
    return hashlib.sha256(output.tobytes()).hexdigest()


def validate(
    plan: Plan,
    inputs: ValidationInputs,
    reference: EagerReference,
    bucket: int,
    tolerance: float,
    device: str,
) -> Validation:
    """Run a plan at one bucket in the arrangements of `SHORT`."""
    digests = {output_digest(plan, inputs, bucket) for _ in range(2)}
    seconds = min(_seconds(plan, bucket) for _ in range(NUM_TIMED_RUNS))  # other work only adds to it
    outcome = sweep(plan, inputs, bucket, SHORT, reference=reference)
    return Validation(
        bucket=bucket,
        error=outcome.error,
        tolerance=tolerance,
        output_digest=digests.pop() if len(digests) == 1 else None,
        row_digest=outcome.row_digest,
        seconds=seconds,
        verified_on=device,
        verified_at=datetime.now(UTC).date().isoformat(),
    )


def _seconds(plan: Plan, bucket: int) -> float:
    started_at = time.perf_counter()
    plan.start(bucket)
    plan.wait()
    return time.perf_counter() - started_at


class SweepOutcome(NamedTuple):
    """SHA-256 of the samples' rows, None if one depends on its place, its neighbours or the repeat; the worst error."""

    row_digest: str | None
    error: float


def sweep(
    plan: Plan,
    inputs: ValidationInputs,
    bucket: int,
    neighbours: Sequence[Neighbours],
    *,
    repeats: int = 1,
    reference: EagerReference | None = None,
) -> SweepOutcome:
    """Run a plan in many arrangements; the error, against the reference, is 0 without one."""
    rows: dict[int, bytes] = {}
    is_equal, error = True, 0.0
    for _ in range(repeats):
        for samples, fill_value in _arrangements(bucket, neighbours, is_short=repeats == 1):
            batch = inputs.rows([0 if sample is None else sample for sample in samples])
            fillers = [row for row, sample in enumerate(samples) if sample is None]
            for array in batch:
                if array.dtype == np.float32:
                    array[fillers] = fill_value
            output = run(plan, batch)
            places = {row: sample for row, sample in enumerate(samples) if sample is not None}
            for row, sample in places.items():
                content = output[row].tobytes()
                is_equal = rows.setdefault(sample, content) == content and is_equal
            if reference is not None:
                error = max(error, reference.error(output[list(places)], list(places.values())))
    digest = hashlib.sha256(b"".join(rows[sample] for sample in sorted(rows))).hexdigest()
    return SweepOutcome(digest if is_equal else None, error)


def equal_buckets(row_digests: Mapping[int, str | None]) -> list[tuple[int, ...]]:
    """Group buckets with equal rows: the largest group first, of equally large ones the one with the largest bucket.

    `row_digests` are the results of `sweep` by bucket.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for bucket, digest in sorted(row_digests.items()):
        if digest is not None:
            groups[digest].append(bucket)
    return sorted(map(tuple, groups.values()), key=lambda group: (len(group), group[-1]), reverse=True)


def _arrangements(
    bucket: int, neighbours: Sequence[Neighbours], *, is_short: bool
) -> Iterator[tuple[list[int | None], float]]:
    """Yield the sample in each row, None for a row to be filled, and the value that fills it.

    Short: with few shifts, as large batches have each sample in several places anyway.
    """
    num_shifts = min(max(-(-2 * NUM_SAMPLES // bucket), 2), NUM_SAMPLES) if is_short else NUM_SAMPLES
    for kind in neighbours:
        if kind == "samples":
            for shift in range(num_shifts):
                yield [(row + shift) % NUM_SAMPLES for row in range(bucket)], 0.0
        elif kind == "copies":
            for sample in range(num_shifts):
                yield [sample] * bucket, 0.0
        elif bucket > 1:
            for shift in range(2 * NUM_SAMPLES if not is_short or bucket < NUM_SAMPLES else 2):
                positions = (row + shift for row in range(bucket))
                yield [None if p % 2 else p % NUM_SAMPLES for p in positions], _FILL_VALUES[kind]
