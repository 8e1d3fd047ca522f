"""What a plan has to show before it serves: that it agrees with the reference, and what its rows depend on.

Probes are samples made up from fixed noise. A trial runs them through a plan in many arrangements: every probe in
every slot of the batch, beside other probes, beside copies of itself (the padding that the executor uses), beside rows
of NaN. The answers are compared with those of the modules in eager float32, and with each other, byte by byte.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Input, Plan
from msf_scheduler.stage import Stage

NUM_PROBES = 5  # odd: then a probe meets every parity of slot
PROBE_SEED = 20250123
Neighbours = Literal["probes", "copies", "nan", "infinity", "zero", "huge"]
SHORT: tuple[Neighbours, ...] = ("probes", "copies", "nan")
FULL: tuple[Neighbours, ...] = (*SHORT, "infinity", "zero", "huge")
FULL_REPEATS = 50
_INTRUDERS: Mapping[Neighbours, float] = {"nan": torch.nan, "infinity": torch.inf, "zero": 0.0, "huge": 1e4}

# Relative RMS error of the velocity at most, of the worst probe; and grey levels of 255 for the decoder's pixels.
STEP_TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 6e-2}
DECODE_TOLERANCE = {"fp32": 1.0, "fp16": 3.0, "bf16": 8.0}


@dataclass(frozen=True)
class Trial:
    """How a plan did at one bucket.

    `error` is against eager float32, in the unit of `tolerance`. `row` is the SHA-256 of the probes' answers where
    these were the same in every arrangement, else None. `answer` is that of the plainest arrangement, None where even
    that varied: a plan that gives another one later is not the plan that was tried.
    """

    bucket: int
    error: float
    tolerance: float
    answer: str | None
    row: str | None
    verified_on: str
    verified_at: str  # ISO 8601 date

    @property
    def is_accepted(self) -> bool:
        return self.error <= self.tolerance


def tolerance(stage: Stage, precision: str) -> float:
    return (DECODE_TOLERANCE if stage is Stage.DECODE else STEP_TOLERANCE)[precision]


@dataclass(frozen=True)
class Probes:
    """Inputs of `NUM_PROBES` samples, (NUM_PROBES, ...) each, for one stage."""

    inputs: tuple[Tensor, ...]

    def rows(self, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        return tuple(tensor[list(numbers)] for tensor in self.inputs)


def make_probes(
    stage: Stage, inputs: Sequence[Input], num_classes: int, time_embedding: Callable[[Tensor, Tensor], Tensor]
) -> Probes:
    """Normal latents at times from noise to data, all with labels and coefficients of their own.

    `inputs` are those of the stage's plans.
    """
    latents = [
        torch.stack([gaussian_noise(shape, seed=PROBE_SEED + place, index=index, stream=NoiseStream.BASE)
                     for index in range(NUM_PROBES)])
        for place, (shape, dtype) in enumerate(inputs) if len(shape) == 3
    ]  # fmt: skip
    if stage is Stage.DECODE:
        return Probes(tuple(latents))
    numbers = torch.arange(NUM_PROBES)
    unit = (numbers + 0.5) / NUM_PROBES
    with torch.inference_mode():
        times = time_embedding(1 - unit.double(), torch.full((NUM_PROBES,), 0.1))
    labels = numbers * 7 % num_classes
    w, a, b, c = 1 + 3 * unit, 1 - 0.1 * unit, -0.02 - 0.1 * unit, 0.05 * unit
    return Probes((*latents, times, labels, w, a, b, c))


@dataclass(frozen=True)
class Reference:
    """The probes' answers by the modules themselves, in eager float32."""

    stage: Stage
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, stage: Stage, module: nn.Module, probes: Probes) -> Reference:
        device = next(module.parameters()).device
        with torch.inference_mode(), _without_tf32() if device.type == "cuda" else nullcontext():
            outputs = module(*(tensor.to(device) for tensor in probes.inputs))
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        return cls(stage, tuple(output.cpu() for output in several))

    def error(self, outputs: Sequence[Tensor], numbers: Sequence[int]) -> float:
        """Of the worst row: relative RMS of the velocity, or the largest difference between pixels."""
        expected, found = self.outputs[0][list(numbers)].float(), outputs[0].float()
        difference = (found - expected).flatten(1)
        if self.stage is Stage.DECODE:
            worst = difference.abs().max()
        else:
            worst = (difference.norm(dim=1) / expected.flatten(1).norm(dim=1).clamp_min(1e-12)).max()
        return worst.item() if worst.isfinite() else inf


@contextmanager
def _without_tf32() -> Iterator[None]:
    """By the old flag alone: torch refuses to read it once the newer ones, which `cudnn.flags` sets too, differ."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def answer(plan: Plan, probes: Probes, bucket: int) -> str:
    """SHA-256 of what a plan makes of the probes in the plainest arrangement."""
    return _digest(plan(*probes.rows([slot % NUM_PROBES for slot in range(bucket)])))


def trial(
    plan: Plan,
    probes: Probes,
    reference: Reference,
    bucket: int,
    *,
    tolerance: float,
    verified_on: str,
    verified_at: str,
    neighbours: Sequence[Neighbours] = SHORT,
    repeats: int = 1,
) -> Trial:
    """Run a plan at one bucket in every arrangement, `repeats` times."""
    rotations = [[(slot + shift) % NUM_PROBES for slot in range(bucket)] for shift in range(NUM_PROBES)]
    error = max(reference.error(plan(*probes.rows(numbers)), numbers) for numbers in rotations)
    answers = {answer(plan, probes, bucket) for _ in range(2)}
    return Trial(
        bucket=bucket,
        error=error,
        tolerance=tolerance,
        answer=answers.pop() if len(answers) == 1 else None,
        row=sweep(plan, probes, bucket, neighbours, repeats),
        verified_on=verified_on,
        verified_at=verified_at,
    )


def sweep(plan: Plan, probes: Probes, bucket: int, neighbours: Sequence[Neighbours], repeats: int) -> str | None:
    """SHA-256 of the probes' rows where they are the same in every slot, beside every neighbour, in every repeat."""
    known: dict[int, bytes] = {}
    for _ in range(repeats):
        for numbers, intruder in _arrangements(bucket, neighbours):
            inputs = probes.rows([number if number is not None else 0 for number in numbers])
            for slot, number in enumerate(numbers):
                if number is None:
                    _intrude(inputs, slot, intruder)
            outputs = plan(*inputs)
            for slot, number in enumerate(numbers):
                if number is not None:
                    row = b"".join(_bytes(output[slot]) for output in outputs)
                    if known.setdefault(number, row) != row:
                        return None
    return hashlib.sha256(b"".join(known[number] for number in sorted(known))).hexdigest()


def strict_sets(rows: Mapping[int, str | None]) -> list[tuple[int, ...]]:
    """Sets of buckets in which a row comes out the same, to the byte; the largest first, of equal ones that which holds
    the largest bucket. `rows` are `sweep`'s answers.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for bucket, row in sorted(rows.items()):
        if row is not None:
            alike[row].append(bucket)
    return sorted((tuple(buckets) for buckets in alike.values()), key=lambda b: (len(b), b[-1]), reverse=True)


def _arrangements(bucket: int, neighbours: Sequence[Neighbours]) -> Iterator[tuple[list[int | None], float]]:
    """Which probe is in each slot (None: an intruder), and the intruders' value."""
    for kind in neighbours:
        if kind == "probes":
            for shift in range(NUM_PROBES):
                yield [(slot + shift) % NUM_PROBES for slot in range(bucket)], 0.0
        elif kind == "copies":
            for number in range(NUM_PROBES):
                yield [number] * bucket, 0.0
        elif bucket > 1:
            for shift in range(2 * NUM_PROBES):
                places = (slot + shift for slot in range(bucket))
                yield [None if place % 2 else place % NUM_PROBES for place in places], _INTRUDERS[kind]


def _intrude(inputs: tuple[Tensor, ...], slot: int, value: float) -> None:
    for tensor in inputs:
        if tensor.is_floating_point():
            tensor[slot] = value


def _digest(outputs: Sequence[Tensor]) -> str:
    return hashlib.sha256(b"".join(_bytes(output) for output in outputs)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
