"""Validation of plans before they serve: agreement with eager float32, and what the bytes of a row depend on.

The inputs are a few fixed samples. They run through a plan in many arrangements: each in every slot of the batch, next
to other samples, next to copies of itself (the padding that the executor uses), next to rows of NaN. The outputs are
compared with those of the modules in eager float32, and with each other, byte by byte.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Input, Plan, stage_inputs
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.config import ModelConfig
    from msf_engine.denoiser import TimeEmbedding

NUM_SAMPLES = 5  # odd, so that every sample meets slots of either parity
SEED = 20250123
Neighbours = Literal["samples", "copies", "nan", "infinity", "zero", "huge"]
SHORT: tuple[Neighbours, ...] = ("samples", "copies", "nan")
FULL: tuple[Neighbours, ...] = (*SHORT, "infinity", "zero", "huge")
FULL_REPEATS = 50
_FILL_VALUES: Mapping[Neighbours, float] = {"nan": torch.nan, "infinity": torch.inf, "zero": 0.0, "huge": 1e4}

# Largest error of the worst sample: relative RMS of the velocity; grey levels of 255 for the decoder's pixels.
STEP_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 6e-2}
DECODE_TOLERANCE = {"fp32": 1.0, "fp16": 3.0, "bf16": 8.0}


@dataclass(frozen=True)
class Validation:
    """Outcome of a plan's validation at one bucket.

    `error` is against eager float32, in the unit of `tolerance`. `row_digest` is the SHA-256 of the samples' outputs if
    these are the same in every arrangement, else None. `output_digest` is that of the plainest arrangement, None where
    it varies; a loaded plan that yields another one is not the plan that was validated.
    """

    bucket: int
    error: float
    tolerance: float
    output_digest: str | None
    row_digest: str | None
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
    """Inputs of a stage's plans for `NUM_SAMPLES` samples: tensors of (NUM_SAMPLES, ...)."""

    tensors: tuple[Tensor, ...]

    def rows(self, samples: Sequence[int]) -> tuple[Tensor, ...]:
        """Return a batch of these samples."""
        return tuple(tensor[list(samples)] for tensor in self.tensors)


def make_validation_inputs(
    stage: Stage, inputs: Sequence[Input], num_classes: int, embed: Callable[[Tensor, Tensor], Tensor]
) -> ValidationInputs:
    """Return normal latents, at times from noise to data, with labels and coefficients that differ.

    `inputs` are those of the stage's plans, `embed` is its time embedding.
    """
    latents = [
        torch.stack([gaussian_noise(shape, seed=SEED + position, index=index, stream=NoiseStream.BASE)
                     for index in range(NUM_SAMPLES)])
        for position, (shape, _) in enumerate(inputs) if len(shape) == 3
    ]  # fmt: skip
    if stage is Stage.DECODE:
        return ValidationInputs(tuple(latents))
    numbers = torch.arange(NUM_SAMPLES)
    unit = (numbers + 0.5) / NUM_SAMPLES
    with torch.inference_mode():
        time_embedding = embed(1 - unit.double(), torch.full((NUM_SAMPLES,), 0.1))
    labels = numbers * 7 % num_classes
    w, a, b, c = 1 + 3 * unit, 1 - 0.1 * unit, -0.02 - 0.1 * unit, 0.05 * unit
    return ValidationInputs((*latents, time_embedding, labels, w, a, b, c))


def validation_inputs(
    config: ModelConfig, time_embeddings: Mapping[Stage, TimeEmbedding], stage: Stage
) -> ValidationInputs:
    """Return the inputs that validate the plans of a model's stage."""
    embed = time_embeddings.get(stage, time_embeddings[Stage.BASE])
    return make_validation_inputs(stage, stage_inputs(config, stage), config.num_classes, embed)


@dataclass(frozen=True)
class EagerReference:
    """Outputs of the modules themselves for the validation inputs, in eager float32."""

    stage: Stage
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, stage: Stage, module: nn.Module, inputs: ValidationInputs) -> EagerReference:
        """Run the module where its parameters are."""
        device = next(module.parameters()).device
        with torch.inference_mode(), _without_tf32() if device.type == "cuda" else nullcontext():
            outputs = module(*(tensor.to(device) for tensor in inputs.tensors))
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return cls(stage, tuple(output.cpu() for output in several))

    def error(self, outputs: Sequence[Tensor], samples: Sequence[int]) -> float:
        """Return the worst row's error: relative RMS of the velocity, or the largest difference between pixels."""
        expected, actual = self.outputs[0][list(samples)].float(), outputs[0].float()
        difference = (actual - expected).flatten(1)
        if self.stage is Stage.DECODE:
            worst = difference.abs().max()
        else:
            worst = (difference.norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)).max()
        return worst.item() if worst.isfinite() else inf


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Disable TF32 by the old flag: torch refuses to read it once the newer ones, as `cudnn.flags` sets, differ."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def output_digest(plan: Plan, inputs: ValidationInputs, bucket: int) -> str:
    """Return the SHA-256 of a plan's outputs in the plainest arrangement."""
    outputs = plan(*inputs.rows([slot % NUM_SAMPLES for slot in range(bucket)]))
    return hashlib.sha256(b"".join(map(_bytes, outputs))).hexdigest()


def validate(
    plan: Plan,
    inputs: ValidationInputs,
    reference: EagerReference,
    bucket: int,
    tolerance: float,
    device: str,
) -> Validation:
    """Run a plan at one bucket in the arrangements of `SHORT`."""
    rotations = [[(slot + shift) % NUM_SAMPLES for slot in range(bucket)] for shift in range(NUM_SAMPLES)]
    digests = {output_digest(plan, inputs, bucket) for _ in range(2)}
    return Validation(
        bucket=bucket,
        error=max(reference.error(plan(*inputs.rows(samples)), samples) for samples in rotations),
        tolerance=tolerance,
        output_digest=digests.pop() if len(digests) == 1 else None,
        row_digest=sweep(plan, inputs, bucket, SHORT, repeats=1),
        verified_on=device,
        verified_at=datetime.now(UTC).date().isoformat(),
    )


def sweep(
    plan: Plan, inputs: ValidationInputs, bucket: int, neighbours: Sequence[Neighbours], repeats: int
) -> str | None:
    """Return the SHA-256 of the samples' rows, or None if one depends on its slot, its neighbours or the repeat."""
    rows: dict[int, bytes] = {}
    for _ in range(repeats):
        for samples, fill_value in _arrangements(bucket, neighbours):
            batch = inputs.rows([0 if sample is None else sample for sample in samples])
            for slot, sample in enumerate(samples):
                if sample is None:
                    _fill(batch, slot, fill_value)
            outputs = plan(*batch)
            for slot, sample in enumerate(samples):
                if sample is not None:
                    row = b"".join(_bytes(output[slot]) for output in outputs)
                    if rows.setdefault(sample, row) != row:
                        return None
    return hashlib.sha256(b"".join(rows[sample] for sample in sorted(rows))).hexdigest()


def equal_buckets(row_digests: Mapping[int, str | None]) -> list[tuple[int, ...]]:
    """Group buckets with equal rows: the largest group first, of equally large ones the one with the largest bucket.

    `row_digests` are the results of `sweep` by bucket.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for bucket, digest in sorted(row_digests.items()):
        if digest is not None:
            groups[digest].append(bucket)
    return sorted(map(tuple, groups.values()), key=lambda group: (len(group), group[-1]), reverse=True)


def _arrangements(bucket: int, neighbours: Sequence[Neighbours]) -> Iterator[tuple[list[int | None], float]]:
    """Yield the sample in each slot, None for a row to be filled, and the value that fills it."""
    for kind in neighbours:
        if kind == "samples":
            for shift in range(NUM_SAMPLES):
                yield [(slot + shift) % NUM_SAMPLES for slot in range(bucket)], 0.0
        elif kind == "copies":
            for sample in range(NUM_SAMPLES):
                yield [sample] * bucket, 0.0
        elif bucket > 1:
            for shift in range(2 * NUM_SAMPLES):
                positions = (slot + shift for slot in range(bucket))
                yield [None if p % 2 else p % NUM_SAMPLES for p in positions], _FILL_VALUES[kind]


def _fill(batch: tuple[Tensor, ...], slot: int, value: float) -> None:
    for tensor in batch:
        if tensor.is_floating_point():
            tensor[slot] = value


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
