"""Measured costs of step batches, by which the policy weighs and deadlines are judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msf_scheduler.stage import Stage

FADE = 0.1  # weight of the newest measurement in the running mean

Kind = tuple[Stage, bool]  # of a plan: stage, guided
KINDS: tuple[Kind, ...] = (
    (Stage.BASE, True),
    (Stage.BASE, False),
    (Stage.RESIDUAL, True),
    (Stage.RESIDUAL, False),
    (Stage.DECODE, False),
)


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step batch takes in one bucket: running mean and minimum."""

    stage: Stage
    guided: bool
    bucket: int
    mean_s: float
    least_s: float


class Work(NamedTuple):
    """Denoising steps that remain of a sample, by stage, and whether they are guided; its decode is additional."""

    num_base_steps: int
    num_residual_steps: int
    base_guided: bool
    residual_guided: bool


class StepCosts:
    """Costs of one model version on one device. Only `observe` changes them.

    An unmeasured bucket is assumed to cost what the nearest measured bucket of the same plan does, so that it gets
    measured. Without any measurement a step costs nothing, and the policy decides by fill and age.
    """

    def __init__(
        self, buckets: Sequence[int], costs: Iterable[StepCost] = (), strict: Mapping[Kind, Sequence[int]] | None = None
    ) -> None:
        """`strict`: buckets that strict samples may take, for each kind of plan the model has; None: all."""
        self.buckets = tuple(sorted(buckets))
        self._strict = None if strict is None else {kind: tuple(sorted(allowed)) for kind, allowed in strict.items()}
        self._costs = {(cost.stage, cost.guided, cost.bucket): cost for cost in costs}
        # Cached by kind of plan: read for every sample between two steps.
        self._shares: dict[Kind, float] = {}
        self._least: dict[Kind, float] = {}
        for cost in self._costs.values():
            self._note_least(cost)

    def __iter__(self) -> Iterator[StepCost]:
        return iter(self._costs.values())

    def observe(self, stage: Stage, guided: bool, bucket: int, seconds: float) -> None:
        """Record the duration of a step batch."""
        key = stage, guided, bucket
        previous = self._costs.get(key, StepCost(*key, mean_s=seconds, least_s=seconds))
        mean_s = previous.mean_s + FADE * (seconds - previous.mean_s)
        least_s = min(previous.least_s, seconds)
        self._costs[key] = cost = StepCost(stage, guided, bucket, mean_s, least_s)
        self._note_least(cost)
        self._shares.pop((stage, guided), None)

    def buckets_of(self, stage: Stage, guided: bool, *, strict: bool) -> tuple[int, ...]:
        """Return the buckets, ascending, that a step batch with (or without) a strict member may take."""
        return self._strict.get((stage, guided), ()) if strict and self._strict is not None else self.buckets

    def bucket_for(self, count: int, buckets: Sequence[int] | None = None) -> int:
        """Return the smallest of the buckets that holds `count` samples, or the largest."""
        buckets = buckets or self.buckets
        return next((bucket for bucket in buckets if bucket >= count), buckets[-1])

    def strict_cost(self) -> float | None:
        """Return the largest relative increase in a step batch's time when it may use strict buckets only.

        None if a stage has no strict bucket. A batch too large for the strict buckets counts as split.
        """
        worst = 0.0
        for stage, guided in self._strict or KINDS:
            allowed = self.buckets_of(stage, guided, strict=True)
            if not allowed:
                return None
            for count in self.buckets:
                strict_s = self.mean_s(stage, guided, self.bucket_for(count, allowed)) * -(-count // allowed[-1])
                worst = max(worst, strict_s / max(self.mean_s(stage, guided, count), 1e-9) - 1)
        return worst

    def mean_s(self, stage: Stage, guided: bool, bucket: int) -> float:
        """Return the expected seconds of a step batch."""
        cost = self._costs.get((stage, guided, bucket))
        if cost is not None:
            return cost.mean_s
        measured = [cost for cost in self._costs.values() if (cost.stage, cost.guided) == (stage, guided)]
        if not measured:
            return 0.0
        return min(measured, key=lambda cost: abs(cost.bucket - bucket)).mean_s

    def share_s(self, stage: Stage, guided: bool) -> float:
        """Return a sample's share of a step batch, in seconds, in the most efficient bucket."""
        key = stage, guided
        if key not in self._shares:
            self._shares[key] = min(self.mean_s(stage, guided, bucket) / bucket for bucket in self.buckets)
        return self._shares[key]

    def work_s(self, work: Work) -> float:
        """Return the device seconds that a sample still needs in efficient buckets."""
        return (
            work.num_base_steps * self.share_s(Stage.BASE, work.base_guided)
            + work.num_residual_steps * self.share_s(Stage.RESIDUAL, work.residual_guided)
            + self.share_s(Stage.DECODE, False)
        )

    def least_s(self, work: Work) -> float:
        """Return the lower bound, in seconds: no sample with this work remaining can be done sooner."""
        return (
            work.num_base_steps * self._least.get((Stage.BASE, work.base_guided), 0.0)
            + work.num_residual_steps * self._least.get((Stage.RESIDUAL, work.residual_guided), 0.0)
            + self._least.get((Stage.DECODE, False), 0.0)
        )

    def _note_least(self, cost: StepCost) -> None:
        key = cost.stage, cost.guided
        self._least[key] = min(self._least.get(key, cost.least_s), cost.least_s)
