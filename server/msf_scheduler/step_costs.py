"""What a step batch costs, as measured: the policy weighs by it, deadlines are judged by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msf_scheduler.stage import Stage

FADE = 0.1  # weight of the newest measurement in the running mean

Kind = tuple[Stage, bool]  # whose plans are alike: stage, guided
KINDS: tuple[Kind, ...] = (
    (Stage.BASE, True),
    (Stage.BASE, False),
    (Stage.RESIDUAL, True),
    (Stage.RESIDUAL, False),
    (Stage.DECODE, False),
)


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step batch takes in one bucket: on average lately, and at the least ever."""

    stage: Stage
    guided: bool
    bucket: int
    mean_s: float
    least_s: float


class Work(NamedTuple):
    """What is left of a sample: denoising steps by stage, and whether they are guided; its decode comes on top."""

    num_base_steps: int
    num_residual_steps: int
    base_guided: bool
    residual_guided: bool


class StepCosts:
    """The costs of one model version on one device. `observe` is the only writer.

    What has not been measured is hoped to cost no more than the nearest bucket of the same plan that was, so that it
    is tried; with nothing measured at all, a step costs nothing, and the policy is left with fill and age.
    """

    def __init__(
        self, buckets: Sequence[int], costs: Iterable[StepCost] = (), strict: Mapping[Kind, Sequence[int]] | None = None
    ) -> None:
        """`strict`: of each kind of plan there is, the buckets that strict samples may ride in; without it, all."""
        self.buckets = tuple(sorted(buckets))
        self._strict = None if strict is None else {kind: tuple(sorted(its)) for kind, its in strict.items()}
        self._costs = {(cost.stage, cost.guided, cost.bucket): cost for cost in costs}
        # Asked for every sample between two steps, so they are kept: of each plan, by stage and guidance.
        self._shares: dict[Kind, float] = {}
        self._least: dict[Kind, float] = {}
        for cost in self._costs.values():
            self._note_least(cost)

    def __iter__(self) -> Iterator[StepCost]:
        return iter(self._costs.values())

    def observe(self, stage: Stage, guided: bool, bucket: int, seconds: float) -> None:
        """Book the duration of a step batch."""
        key = stage, guided, bucket
        known = self._costs.get(key)
        mean_s = seconds if known is None else known.mean_s + FADE * (seconds - known.mean_s)
        least_s = seconds if known is None else min(known.least_s, seconds)
        self._costs[key] = cost = StepCost(stage, guided, bucket, mean_s, least_s)
        self._note_least(cost)
        self._shares.pop((stage, guided), None)

    def buckets_of(self, stage: Stage, guided: bool, *, strict: bool) -> tuple[int, ...]:
        """Ascending, those that a step batch with (or without) a strict rider may take."""
        return self._strict.get((stage, guided), ()) if strict and self._strict is not None else self.buckets

    def bucket_for(self, count: int, buckets: Sequence[int] | None = None) -> int:
        """The smallest of the buckets that holds `count` samples, or the largest there is."""
        buckets = buckets or self.buckets
        return next((bucket for bucket in buckets if bucket >= count), buckets[-1])

    def strict_cost(self) -> float | None:
        """What the least favourable step batch takes more, as a share, when it may use strict buckets only.

        None where a stage has no strict bucket. A batch too large for the strict buckets is split.
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
        """Expected seconds of a step batch."""
        known = self._costs.get((stage, guided, bucket))
        if known is not None:
            return known.mean_s
        measured = [cost for cost in self._costs.values() if (cost.stage, cost.guided) == (stage, guided)]
        if not measured:
            return 0.0
        return min(measured, key=lambda cost: abs(cost.bucket - bucket)).mean_s

    def share_s(self, stage: Stage, guided: bool) -> float:
        """A sample's part of a step batch in the bucket that suits the device best, in seconds."""
        key = stage, guided
        if key not in self._shares:
            self._shares[key] = min(self.mean_s(stage, guided, bucket) / bucket for bucket in self.buckets)
        return self._shares[key]

    def work_s(self, work: Work) -> float:
        """Device seconds that a sample still needs, in good company."""
        return (
            work.num_base_steps * self.share_s(Stage.BASE, work.base_guided)
            + work.num_residual_steps * self.share_s(Stage.RESIDUAL, work.residual_guided)
            + self.share_s(Stage.DECODE, False)
        )

    def least_s(self, work: Work) -> float:
        """The optimistic bound: no sample with this work left can be done sooner, in seconds."""
        return (
            work.num_base_steps * self._least.get((Stage.BASE, work.base_guided), 0.0)
            + work.num_residual_steps * self._least.get((Stage.RESIDUAL, work.residual_guided), 0.0)
            + self._least.get((Stage.DECODE, False), 0.0)
        )

    def _note_least(self, cost: StepCost) -> None:
        key = cost.stage, cost.guided
        self._least[key] = min(self._least.get(key, cost.least_s), cost.least_s)
