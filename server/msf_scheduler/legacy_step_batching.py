"""Choice of the samples that advance next. Pure, without clock or Redis: equal candidates always give equal batches.

Samples of one model, stage and plan (guided or not) can share a step batch, whatever their step. For each such group
and each batch size, the policy estimates the value of a step batch per second: the weights of its members, times the
work it does for each, over its measured cost. A member's weight is sqrt(slowdown / remaining time): the geometric mean
of shortest-remaining-first, which completes most jobs soonest, and of the job's total time over its own length, which
keeps long jobs from paying for all others. Priority, deadline and tenant scale it.

Two rules override the weights. Under load no batch may waste the device: the fuller the slots, the closer its rate must
be to the best available. And nothing starves: a sample that was not stepped for `PATIENCE_S` goes before all that
waited less, so with N candidates none waits longer than `PATIENCE_S` and N - 1 step batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from operator import itemgetter
from typing import Protocol

from msf_scheduler.jobs import ModelKey, Priority
from msf_scheduler.legacy_step_costs import StepCosts
from msf_scheduler.stage import Stage

PATIENCE_S = 1.0
MAX_WASTE = 0.1  # of the best available rate, when all slots are taken
MAX_URGENCY = 16.0
PRIORITY_WEIGHT = {Priority.HIGH: 8.0, Priority.NORMAL: 1.0, Priority.LOW: 0.125}
MOMENT_S = 1e-6  # keeps divisors above zero
REASONS = ("overdue", "deadline", "full", "all", "best")  # of a step batch; see `StepBatch`

Group = tuple[ModelKey, Stage, bool]


@dataclass(frozen=True)
class ActiveWork:
    """A job in a worker, as the policy sees it. Times are seconds on the clock of `now`."""

    id: str
    arrived_at: float
    total_s: float  # device seconds of all its samples, from noise to image
    remaining_s: float  # the part of it that is not done
    priority: Priority = Priority.NORMAL
    deadline: float | None = None
    share: float = 1.0  # its tenant's weight over the tenant's number of active jobs


@dataclass(frozen=True)
class Candidate:
    """A sample in a slot that could take its next step. It took the last one, or joined, at `stepped_at`."""

    slot: int
    index: int  # among its job's samples
    job: ActiveWork
    model: ModelKey
    stage: Stage
    guided: bool
    stepped_at: float
    strict: bool = False  # takes only the buckets in which its bytes do not depend on the batch

    @property
    def group(self) -> Group:
        """Group of samples that may share a step batch."""
        return self.model, self.stage, self.guided


@dataclass(frozen=True)
class StepBatch:
    """Slots of one model to advance together, in a plan for `bucket` samples, and the reason for the choice.

    "overdue": a member waited for `PATIENCE_S`; "deadline": a member's slack is below its own length; "full": the
    largest bucket is filled; "all": every candidate is a member; "best": highest value for its cost.
    """

    model: ModelKey
    stage: Stage
    guided: bool
    slots: tuple[int, ...]
    bucket: int
    reason: str


@dataclass(frozen=True)
class Hold:
    """Decision to run nothing yet: choose again at `until`, or when a sample joins before that."""

    until: float


class BatchingPolicy(Protocol):
    """Choice among all candidates of a worker between two steps; None if there are none.

    `costs` has every model of the candidates; `pressure` is the share of slots in use, 0 to 1.
    """

    def choose(
        self, candidates: Sequence[Candidate], *, costs: Mapping[ModelKey, StepCosts], pressure: float, now: float
    ) -> StepBatch | Hold | None:
        """Return what to run next, or None without candidates."""
        ...


class StepLevelPolicy:
    """Step-level (continuous) batching: every step batch is an independent choice."""

    def choose(
        self, candidates: Sequence[Candidate], *, costs: Mapping[ModelKey, StepCosts], pressure: float, now: float
    ) -> StepBatch | None:
        """Return a batch of one group, at most its largest bucket; never `Hold`."""
        if not candidates:
            return None
        groups: dict[Group, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            groups[candidate.group].append(candidate)
        overdue = min(candidates, key=_waited_longest)
        if now - overdue.stepped_at > PATIENCE_S:
            return _batch(_first_fitting(sorted(groups[overdue.group], key=_waited_longest), costs), costs, "overdue")

        weights = {id(job): _weight(job, now) for job in {id(c.job): c.job for c in candidates}.values()}
        ordered = sorted(groups.items(), key=itemgetter(0))
        options = [
            option for group, grouped in ordered for option in _options(grouped, weights, costs[group[0]], group)
        ]
        least_rate = (1 - MAX_WASTE) * pressure**2 * max(option.rate for option in options)
        best = max((option for option in options if option.rate >= least_rate), key=lambda option: option.value)
        return _batch(best.members, costs, _reason(best.members, len(candidates), costs, now))


@dataclass(frozen=True)
class _Option:
    """A possible step batch; `rate` is useful device seconds per second it takes."""

    members: Sequence[Candidate]
    rate: float
    value: float


def _options(
    candidates: list[Candidate], weights: Mapping[int, float], costs: StepCosts, group: Group
) -> list[_Option]:
    """Return the heaviest members of a group for every bucket that they fill, and all of them for the next larger."""
    _, stage, guided = group
    ranked = sorted(candidates, key=lambda c: (-weights[id(c.job)], c.job.arrived_at, c.index, c.slot))
    share_s = max(costs.share_s(stage, guided), MOMENT_S)
    options = []
    for count in costs.buckets:
        members = ranked[:count]
        allowed = costs.buckets_of(stage, guided, strict=any(c.strict for c in members))
        if len(members) > allowed[-1]:
            break
        bucket = costs.bucket_for(len(members), allowed)
        rate = share_s / max(costs.mean_s(stage, guided, bucket), MOMENT_S)
        options.append(_Option(members, rate * len(members), rate * sum(weights[id(c.job)] for c in members)))
        if len(ranked) <= count:
            break
    return options


def _first_fitting(ranked: Sequence[Candidate], costs: Mapping[ModelKey, StepCosts]) -> Sequence[Candidate]:
    """Return as many of the first as one step batch holds: fewer if one of them is strict."""
    model, stage, guided = ranked[0].group
    members = ranked[: costs[model].buckets[-1]]
    strict = any(candidate.strict for candidate in members)
    return members[: costs[model].buckets_of(stage, guided, strict=strict)[-1]]


def _weight(job: ActiveWork, now: float) -> float:
    age_s = max(now - job.arrived_at, 0.0)
    remaining_s, total_s = max(job.remaining_s, MOMENT_S), max(job.total_s, MOMENT_S)
    slowdown = (age_s + remaining_s) / total_s
    return PRIORITY_WEIGHT[job.priority] * job.share * _urgency(job, now) * sqrt(slowdown / remaining_s)


def _urgency(job: ActiveWork, now: float) -> float:
    """Return 1 without a deadline or far from it, and more as the slack shrinks below the time allowed."""
    if job.deadline is None:
        return 1.0
    allowed_s = job.deadline - job.arrived_at
    slack_s = job.deadline - now - job.remaining_s
    return min(allowed_s / max(slack_s, allowed_s / MAX_URGENCY, MOMENT_S), MAX_URGENCY)


def _reason(members: Sequence[Candidate], num_candidates: int, costs: Mapping[ModelKey, StepCosts], now: float) -> str:
    if any(c.job.deadline is not None and c.job.deadline - now < c.job.remaining_s + c.job.total_s for c in members):
        return "deadline"
    if len(members) == costs[members[0].model].buckets[-1]:
        return "full"
    return "all" if len(members) == num_candidates else "best"


def _batch(members: Sequence[Candidate], costs: Mapping[ModelKey, StepCosts], reason: str) -> StepBatch:
    model, stage, guided = members[0].group
    allowed = costs[model].buckets_of(stage, guided, strict=any(c.strict for c in members))
    bucket = costs[model].bucket_for(len(members), allowed)
    return StepBatch(model, stage, guided, tuple(c.slot for c in members), bucket, reason)


def _waited_longest(candidate: Candidate) -> tuple[float, float, int, int]:
    return candidate.stepped_at, candidate.job.arrived_at, candidate.index, candidate.slot


def active_shares(tenants: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return each tenant's weight over its number of jobs, from (tenant, weight) of every active job."""
    counts: dict[str, int] = defaultdict(int)
    weights: dict[str, float] = {}
    for tenant, weight in tenants:
        counts[tenant] += 1
        weights[tenant] = weight
    return {tenant: weights[tenant] / count for tenant, count in counts.items()}
