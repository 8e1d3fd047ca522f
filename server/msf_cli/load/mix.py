"""The contents of requests: a weighted mix, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Generic, TypeVar

import numpy as np

from msf_cli.load.arrivals import Arrivals, Times

T = TypeVar("T")

SEED_BITS = 53  # the precision of a uniform double


@dataclass(frozen=True)
class Kind:
    """The part of a request that decides its cost. None: the model's default."""

    num_steps: int | None = None
    num_samples: int = 1
    guidance_scale: float | None = None

    @property
    def name(self) -> str:
        parts = [f"{self.num_steps} steps"] if self.num_steps is not None else ["default steps"]
        parts += [f"n={self.num_samples}"]
        parts += [f"guidance {self.guidance_scale:g}"] if self.guidance_scale is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Weighted(Generic[T]):
    """Values with weights, which need not sum to 1."""

    choices: tuple[tuple[T, float], ...]

    @property
    def values(self) -> tuple[T, ...]:
        return tuple(value for value, _ in self.choices)

    def pick(self, uniform: float) -> T:
        """Return the value at `uniform`, in [0, 1), of the cumulative weights."""
        total = sum(weight for _, weight in self.choices)
        reached = 0.0
        for value, weight in self.choices:
            reached += weight / total
            if uniform < reached:
                return value
        return self.choices[-1][0]


def parse_weighted(text: str, parse: Callable[[str], T]) -> Weighted[T]:
    """Parse VALUE[:WEIGHT],...; the default weight is 1. Raises ValueError."""
    choices = []
    for part in text.split(","):
        value, _, weight = part.partition(":")
        try:
            choice = parse(value.strip()), float(weight or 1)
        except ValueError:
            raise ValueError(f"Invalid VALUE[:WEIGHT] {part!r}. Allowed: numbers, such as 4:3,20:5.") from None
        if not (isfinite(choice[1]) and choice[1] > 0):
            raise ValueError(f"Invalid weight {weight} in {part!r}. Allowed: a number above 0.")
        choices.append(choice)
    if len({value for value, _ in choices}) < len(choices):
        raise ValueError(f"Duplicate value in {text!r}. Allowed: each value once.")
    return Weighted(tuple(choices))


@dataclass(frozen=True)
class Mix:
    """Distributions of steps, samples and guidance, drawn independently."""

    num_steps: Weighted[int | None] = Weighted(((None, 1.0),))
    num_samples: Weighted[int] = Weighted(((1, 1.0),))
    guidance_scale: Weighted[float | None] = Weighted(((None, 1.0),))

    @property
    def weighted_kinds(self) -> Weighted[Kind]:
        parts = product(self.num_steps.choices, self.num_samples.choices, self.guidance_scale.choices)
        return Weighted(
            tuple(
                (Kind(num_steps, num_samples, scale), steps_weight * samples_weight * scale_weight)
                for (num_steps, steps_weight), (num_samples, samples_weight), (scale, scale_weight) in parts
            )
        )

    @property
    def kinds(self) -> list[Kind]:
        return list(self.weighted_kinds.values)


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request to send `due_s` seconds after the start of the load."""

    due_s: float
    kind: Kind
    label: int
    seed: int
    slo_s: float | None = None  # objective for its latency that a trace gives


def plan_requests(times: Times, mix: Mix, num_labels: int, rng: np.random.Generator) -> list[PlannedRequest]:
    """Draw a request for each time. The i-th request depends on neither the times nor their number."""
    rows = rng.random((len(times), 5)).tolist()
    return [
        PlannedRequest(
            due_s,
            Kind(mix.num_steps.pick(steps), mix.num_samples.pick(samples), mix.guidance_scale.pick(guidance)),
            int(label * num_labels),
            int(seed * 2**SEED_BITS),
        )
        for due_s, (steps, samples, guidance, label, seed) in zip(times.tolist(), rows, strict=True)
    ]


def plan_typical(num_requests: int, mix: Mix, num_labels: int, seed: int) -> list[PlannedRequest]:
    """Plan requests that are all due at once, their kinds in the exact proportions of the mix, shuffled.

    In a random draw, a few large requests more or less would dominate the total cost.
    """
    rng = np.random.default_rng(seed)
    kinds = mix.weighted_kinds
    shares = (rng.permutation(num_requests) + 0.5) / num_requests
    return [
        PlannedRequest(0.0, kinds.pick(share), label=place % num_labels, seed=place)
        for place, share in enumerate(shares.tolist())
    ]


def plan_load(
    arrivals: Arrivals, rate_per_s: float, duration_s: float, mix: Mix, num_labels: int, seed: int
) -> list[PlannedRequest]:
    """Plan a load that the seed determines; times and requests use separate random streams."""
    times_rng, mix_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return plan_requests(arrivals(rate_per_s, duration_s, times_rng), mix, num_labels, mix_rng)
