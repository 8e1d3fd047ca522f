"""What requests ask for: a weighted mix, drawn by a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import isfinite
from typing import Generic, TypeVar

import numpy as np

from msf_cli.load.arrivals import Arrivals, Times

T = TypeVar("T")

SEED_BITS = 53  # a uniform double holds as many


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
    """Values with their weights, which need not sum to 1."""

    choices: tuple[tuple[T, float], ...]

    @property
    def values(self) -> tuple[T, ...]:
        return tuple(value for value, _ in self.choices)

    def pick(self, uniform: float) -> T:
        """The value at `uniform`, from [0, 1), of the cumulative weights."""
        total = sum(weight for _, weight in self.choices)
        reached = 0.0
        for value, weight in self.choices:
            reached += weight / total
            if uniform < reached:
                return value
        return self.choices[-1][0]


def parse_weighted(text: str, parse: Callable[[str], T]) -> Weighted[T]:
    """Reads VALUE[:WEIGHT],...; a weight that is not given is 1. Raises ValueError for what is none."""
    choices = []
    for part in text.split(","):
        value, _, weight = part.partition(":")
        try:
            choice = parse(value.strip()), float(weight or 1)
        except ValueError:
            raise ValueError(f"{part!r} is no VALUE[:WEIGHT]; allowed: numbers, such as 4:3,20:5") from None
        if not (isfinite(choice[1]) and choice[1] > 0):
            raise ValueError(f"{part!r} has the weight {weight}; allowed: a number above 0")
        choices.append(choice)
    if len({value for value, _ in choices}) < len(choices):
        raise ValueError(f"{text!r} names a value twice; allowed: each value once")
    return Weighted(tuple(choices))


@dataclass(frozen=True)
class Mix:
    """Steps, samples and guidance are drawn independently of each other."""

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
    """`due_s`: the intended time, from the start of the load."""

    due_s: float
    kind: Kind
    label: int
    seed: int


def plan_requests(times: Times, mix: Mix, num_labels: int, rng: np.random.Generator) -> list[PlannedRequest]:
    """The i-th request is the same whatever the times, and however many there are."""
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
    """All due at once, with the kinds in the mix's own proportions, shuffled.

    In a draw a few large requests more or less would decide what the whole costs.
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
    """One seed, one load: times and requests come from streams of their own."""
    times_rng, mix_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    return plan_requests(arrivals(rate_per_s, duration_s, times_rng), mix, num_labels, mix_rng)
