"""Which samples advance next. Pure: no clock, no Redis; the same candidates always give the same batch.

Samples of one model, stage and plan (guided or not) can ride together, whatever their step. For each such group and
each batch size the policy asks what a step batch is worth for the time it takes: the weights of its riders by the share
of work that it does for them, over its measured cost. A rider weighs sqrt(stretch / left), the geometric mean of
shortest-remaining-first, which ends most jobs soonest, and of how many times over its own length a job has taken by
then, which keeps long jobs from paying for all the others; times what its priority, its deadline and its tenant say.

Two rules stand above the weights. No batch may waste the device under load: the fuller the slots, the nearer it must
come to the best rate at hand. And nothing starves: a sample that has not ridden for `PATIENCE_S` rides before all that
waited less, so that with N candidates it waits no longer than `PATIENCE_S` and N - 1 step batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from operator import itemgetter
from typing import Protocol

from msf_scheduler.jobs import ModelKey, Priority
from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCosts

PATIENCE_S = 1.0
MAX_WASTE = 0.1  # of the best rate at hand, when all slots are taken
MAX_URGENCY = 16.0
PRIORITY_WEIGHT = {Priority.HIGH: 8.0, Priority.NORMAL: 1.0, Priority.LOW: 0.125}
MOMENT_S = 1e-6  # keeps divisors above zero
REASONS = ("overdue", "deadline", "full", "all", "best")  # of a step batch; see `StepBatch`

Group = tuple[ModelKey, Stage, bool]


@dataclass(frozen=True)
class ActiveWork:
    """What the policy must know of a job in a worker. Times are seconds on the clock of `now`."""

    id: str
    arrived_at: float
    whole_s: float  # device seconds of all its samples, from noise to image
    left_s: float  # and what of it is left
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    share: float = 1.0  # its tenant's weight over the tenant's number of active jobs


@dataclass(frozen=True)
class Candidate:
    """A sample in a slot that could take its next step; `ridden_at` is when it last did, or joined."""

    slot: int
    index: int  # among its job's samples
    job: ActiveWork
    model: ModelKey
    stage: Stage
    guided: bool
    ridden_at: float
    strict: bool = False  # rides only in buckets that leave its bytes alone; who rides beside it does not matter

    @property
    def group(self) -> Group:
        return self.model, self.stage, self.guided


@dataclass(frozen=True)
class StepBatch:
    """Slots of one model to advance together, in a plan for `bucket` samples, and why these now.

    `reason`: "overdue" (a rider's patience ended), "deadline" (a rider has less time than a stretch of its length
    again), "full" (the largest bucket is filled), "all" (whoever could ride does), or "best" (most for its cost).
    """

    model: ModelKey
    stage: Stage
    guided: bool
    slots: tuple[int, ...]
    bucket: int
    reason: str


@dataclass(frozen=True)
class Hold:
    """Nothing now, on purpose; choose again at `until`, or when a sample joins before that."""

    until: float


class BatchingPolicy(Protocol):
    """Told all candidates of a worker between two steps; None when there is nothing to do.

    `costs` are those of each model that a candidate has; `pressure` is the share of slots in use, 0 to 1.
    """

    def choose(
        self, candidates: Sequence[Candidate], *, costs: Mapping[ModelKey, StepCosts], pressure: float, now: float
    ) -> StepBatch | Hold | None: ...


class StepLevel:
    """Step-level (continuous) batching: every step batch is chosen anew."""

    def choose(
        self, candidates: Sequence[Candidate], *, costs: Mapping[ModelKey, StepCosts], pressure: float, now: float
    ) -> StepBatch | None:
        """Of one group, at most its largest bucket. Never holds back."""
        if not candidates:
            return None
        groups: dict[Group, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            groups[candidate.group].append(candidate)
        overdue = min(candidates, key=_waited_longest)
        if now - overdue.ridden_at > PATIENCE_S:
            return _batch(_that_fit(sorted(groups[overdue.group], key=_waited_longest), costs), costs, "overdue")

        weights = {id(job): _weight(job, now) for job in {id(c.job): c.job for c in candidates}.values()}
        ordered = sorted(groups.items(), key=itemgetter(0))
        options = [
            option for group, members in ordered for option in _options(members, weights, costs[group[0]], group)
        ]
        least_rate = (1 - MAX_WASTE) * pressure**2 * max(option.rate for option in options)
        best = max((option for option in options if option.rate >= least_rate), key=lambda option: option.value)
        return _batch(best.riders, costs, _reason(best.riders, len(candidates), costs, now))


@dataclass(frozen=True)
class _Option:
    """A step batch that could be next: `rate` in useful device seconds for each second that it takes."""

    riders: Sequence[Candidate]
    rate: float
    value: float


def _options(members: list[Candidate], weights: Mapping[int, float], costs: StepCosts, group: Group) -> list[_Option]:
    """The heaviest members of a group in every bucket that they fill, and all of them in one that they do not."""
    _, stage, guided = group
    ranked = sorted(members, key=lambda c: (-weights[id(c.job)], c.job.arrived_at, c.index, c.slot))
    share_s = max(costs.share_s(stage, guided), MOMENT_S)
    options = []
    for count in costs.buckets:
        riders = ranked[:count]
        allowed = costs.buckets_of(stage, guided, strict=any(c.strict for c in riders))
        if len(riders) > allowed[-1]:
            break
        bucket = costs.bucket_for(len(riders), allowed)
        rate = share_s / max(costs.mean_s(stage, guided, bucket), MOMENT_S)
        options.append(_Option(riders, rate * len(riders), rate * sum(weights[id(c.job)] for c in riders)))
        if len(ranked) <= count:
            break
    return options


def _that_fit(ranked: Sequence[Candidate], costs: Mapping[ModelKey, StepCosts]) -> Sequence[Candidate]:
    """As many of the first as one step batch holds: fewer where a strict one is among them."""
    model, stage, guided = ranked[0].group
    riders = ranked[: costs[model].buckets[-1]]
    strict = any(candidate.strict for candidate in riders)
    return riders[: costs[model].buckets_of(stage, guided, strict=strict)[-1]]


def _weight(job: ActiveWork, now: float) -> float:
    age_s = max(now - job.arrived_at, 0.0)
    left_s, whole_s = max(job.left_s, MOMENT_S), max(job.whole_s, MOMENT_S)
    return PRIORITY_WEIGHT[job.priority] * job.share * _urgency(job, now) * sqrt((age_s + left_s) / (left_s * whole_s))


def _urgency(job: ActiveWork, now: float) -> float:
    """1 without a deadline or far from it; grows as the slack shrinks below the time that was given."""
    if job.deadline is None:
        return 1.0
    given_s = job.deadline - job.arrived_at
    slack_s = job.deadline - now - job.left_s
    return min(given_s / max(slack_s, given_s / MAX_URGENCY, MOMENT_S), MAX_URGENCY)


def _reason(riders: Sequence[Candidate], num_candidates: int, costs: Mapping[ModelKey, StepCosts], now: float) -> str:
    if any(c.job.deadline is not None and c.job.deadline - now < c.job.left_s + c.job.whole_s for c in riders):
        return "deadline"
    if len(riders) == costs[riders[0].model].buckets[-1]:
        return "full"
    return "all" if len(riders) == num_candidates else "best"


def _batch(riders: Sequence[Candidate], costs: Mapping[ModelKey, StepCosts], reason: str) -> StepBatch:
    model, stage, guided = riders[0].group
    allowed = costs[model].buckets_of(stage, guided, strict=any(c.strict for c in riders))
    bucket = costs[model].bucket_for(len(riders), allowed)
    return StepBatch(model, stage, guided, tuple(c.slot for c in riders), bucket, reason)


def _waited_longest(candidate: Candidate) -> tuple[float, float, int, int]:
    return candidate.ridden_at, candidate.job.arrived_at, candidate.index, candidate.slot


def active_shares(tenants: Iterable[tuple[str, float]]) -> dict[str, float]:
    """What each job of a tenant weighs, from (tenant, weight) of every active job: its weight over its jobs."""
    counts: dict[str, int] = defaultdict(int)
    weights: dict[str, float] = {}
    for tenant, weight in tenants:
        counts[tenant] += 1
        weights[tenant] = weight
    return {tenant: weights[tenant] / count for tenant, count in counts.items()}
