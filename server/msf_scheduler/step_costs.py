"""Steps of a sample, and the measured costs of step batches, by which the policy weighs and deadlines are judged."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from msf_scheduler.stage import TWO_STAGES, Stage

FADE = 0.1  # weight of the newest measurement in the running mean
MIN_CHANGE = 0.02  # of a mean, for the policy to see it
MOMENT_S = 1e-6  # keeps divisors above zero


@dataclass(frozen=True)
class StepPattern:
    """Steps of one sample from noise to image, in order: the stage of each, and the rows it takes in a step batch.

    Stages are numbers from 0, never decreasing; the last is the decode.
    """

    stages: tuple[int, ...]
    rows: tuple[int, ...]  # 2 for a guided step, otherwise 1

    @classmethod
    def of(cls, *rows_by_stage: Sequence[int]) -> Self:
        """Return a pattern from the rows of each step, stage by stage; the last stage is the decode."""
        stages = tuple(stage for stage, rows in enumerate(rows_by_stage) for _ in rows)
        return cls(stages, tuple(row for rows in rows_by_stage for row in rows))


@dataclass(frozen=True)
class StepCost:
    """Seconds that a step batch takes in one bucket of rows: running mean and minimum; 0 if it is an estimate."""

    stage: Stage
    bucket: int
    mean_s: float
    least_s: float


class _Summary(NamedTuple):
    """Figures of one stage that are read between two steps."""

    share_s: float
    shortest_s: float
    rates: tuple[float, ...]


class StepCosts:
    """Costs of one model version on one device. Only `observe` changes them.

    An unmeasured bucket is assumed to cost what the nearest measured bucket of the same stage does, so that it gets
    measured. Without any measurement a step costs nothing, and the policy decides by fill and age.
    """

    def __init__(
        self,
        buckets: Sequence[int] | Mapping[Stage, Sequence[int]],
        costs: Iterable[StepCost] = (),
        strict: Mapping[Stage, Sequence[int]] | None = None,
        stages: Sequence[Stage] = TWO_STAGES,
    ) -> None:
        """Take the buckets of each stage, or of all, and those of strict samples (None: all). Decode comes last."""
        self.stages = tuple(stages)
        by_stage = buckets if isinstance(buckets, Mapping) else dict.fromkeys(stages, buckets)
        self.buckets = {stage: tuple(sorted(by_stage[stage])) for stage in stages}
        self.version = 0  # counts the changes that the policy sees
        self._strict = {stage: tuple(sorted((strict or by_stage)[stage])) for stage in stages}
        self._costs = {(cost.stage, cost.bucket): cost for cost in costs}
        self._estimates = {key: cost for key, cost in self._costs.items() if not cost.least_s}
        self._summaries: dict[Stage, _Summary] = {}
        self._summarized: dict[tuple[Stage, int], StepCost] = {}  # as they were at the last summary

    def __iter__(self) -> Iterator[StepCost]:
        return iter(self._costs.values())

    @classmethod
    def load(cls, rows: Iterable[Mapping[str, Any]], strict: Mapping[Stage, Sequence[int]] | None = None) -> StepCosts:
        """Restore costs from `dump`. Raises ValueError, KeyError or TypeError if `rows` are not from there."""
        costs = [_step_cost(row) for row in rows]
        if not costs:
            raise ValueError("no step costs")
        if len({(cost.stage, cost.bucket) for cost in costs}) < len(costs):
            raise ValueError("two costs of one stage and bucket")
        stages = tuple(stage for stage in Stage if any(cost.stage is stage for cost in costs))
        buckets = {stage: [cost.bucket for cost in costs if cost.stage is stage] for stage in stages}
        return cls(buckets, costs, strict, stages)

    def dump(self) -> list[dict[str, Any]]:
        """Return the costs as plain data, for `load`."""
        return [asdict(cost) for cost in self]

    def observe(self, stage: Stage, bucket: int, seconds: float) -> None:
        """Record the duration of a step batch."""
        key = stage, bucket
        earlier = self._costs.get(key)
        if earlier is None or not earlier.least_s:
            cost = StepCost(stage, bucket, seconds, seconds)
        else:
            mean_s = earlier.mean_s + FADE * (seconds - earlier.mean_s)
            cost = StepCost(stage, bucket, mean_s, min(earlier.least_s, seconds))
        self._costs[key] = cost
        summarized = self._summarized.get(key)
        if (
            summarized is None
            or cost.least_s < summarized.least_s
            or abs(cost.mean_s - summarized.mean_s) > MIN_CHANGE * summarized.mean_s
        ):
            self._summarized[key] = cost
            self._summaries.pop(stage, None)
            self.version += 1

    def buckets_of(self, stage: Stage, *, strict: bool) -> tuple[int, ...]:
        """Return the buckets, ascending, that a step batch with (or without) a strict member may take."""
        return (self._strict if strict else self.buckets)[stage]

    @property
    def largest_bucket(self) -> int:
        """Return the largest bucket of all stages."""
        return max(buckets[-1] for buckets in self.buckets.values())

    @staticmethod
    def bucket_for(num_rows: int, buckets: Sequence[int]) -> int:
        """Return the smallest of the buckets that holds `num_rows`, or the largest."""
        return buckets[min(bisect_left(buckets, num_rows), len(buckets) - 1)]

    def strict_cost(self) -> float | None:
        """Return the largest relative increase in a step batch's time when it may use strict buckets only.

        None if a stage has no strict bucket. A batch too large for the strict buckets counts as split.
        """
        worst = 0.0
        for stage, allowed in self._strict.items():
            if not allowed:
                return None
            for bucket in self.buckets[stage]:
                strict_s = self.mean_s(stage, self.bucket_for(bucket, allowed)) * -(-bucket // allowed[-1])
                worst = max(worst, strict_s / max(self.mean_s(stage, bucket), MOMENT_S) - 1)
        return worst

    def mean_s(self, stage: Stage, bucket: int) -> float:
        """Return the expected seconds of a step batch.

        A cost that was only estimated follows the nearest bucket that was measured: estimates of one stage err alike.
        """
        cost = self._costs.get((stage, bucket))
        if cost is not None and cost.least_s:
            return cost.mean_s
        measured = [other for other in self if other.stage is stage and other.least_s]
        if not measured:
            return cost.mean_s if cost is not None else 0.0
        nearest = min(measured, key=lambda other: abs(other.bucket - bucket))
        estimate = self._estimates.get((stage, nearest.bucket))
        if cost is None or estimate is None:
            return nearest.mean_s
        return cost.mean_s * nearest.mean_s / estimate.mean_s

    def share_s(self, stage: Stage) -> float:
        """Return a row's share of a step batch, in seconds, in the most efficient bucket."""
        return self._summary(stage).share_s

    def shortest_s(self, stage: Stage) -> float:
        """Return the least seconds that a step of this stage ever took, in any bucket."""
        return self._summary(stage).shortest_s

    def rates(self, stage: Stage) -> tuple[float, ...]:
        """Return, for each bucket, the useful seconds that a row in it adds to each second of the step batch.

        A full batch in the most efficient bucket has a rate of 1 in all.
        """
        return self._summary(stage).rates

    def _summary(self, stage: Stage) -> _Summary:
        summary = self._summaries.get(stage)
        if summary is None:
            buckets = self.buckets[stage]
            means_s = [self.mean_s(stage, bucket) for bucket in buckets]
            share_s = min(mean_s / bucket for mean_s, bucket in zip(means_s, buckets, strict=True))
            summary = self._summaries[stage] = _Summary(
                share_s,
                min((cost.least_s for cost in self if cost.stage is stage and cost.least_s), default=0.0),
                tuple(max(share_s, MOMENT_S) / max(mean_s, MOMENT_S) for mean_s in means_s),
            )
        return summary

    def work_s(self, pattern: StepPattern) -> float:
        """Return the device seconds of a sample in efficient buckets."""
        shares_s = [self.share_s(stage) for stage in self.stages]
        return sum(rows * shares_s[stage] for stage, rows in zip(pattern.stages, pattern.rows, strict=True))

    def least_s(self, pattern: StepPattern) -> float:
        """Return the lower bound, in seconds: no sample with this pattern can be done sooner."""
        shortest_s = [self.shortest_s(stage) for stage in self.stages]
        return sum(shortest_s[stage] for stage in pattern.stages)


def _step_cost(row: Mapping[str, Any]) -> StepCost:
    """Convert a row of plain data; other fields are ignored."""
    cost = StepCost(Stage(row["stage"]), int(row["bucket"]), float(row["mean_s"]), float(row["least_s"]))
    if cost.bucket < 1 or not (0 <= cost.least_s < math.inf and 0 <= cost.mean_s < math.inf):
        raise ValueError(f"invalid step cost {row!r}")
    return cost
