"""Choice of the samples that advance next. Pure, without clock or Redis: equal sets always give equal batches.

Samples of one model and stage can share a step batch, whatever their step, guided (two rows) or not (one row). For each
such group and each batch size, the policy estimates the value of a step batch per second: the weights of its members,
times the work it does for each, over its measured cost. A member's weight is sqrt(slowdown / remaining time): the
geometric mean of shortest-remaining-first, which completes most jobs soonest, and of the job's total time over its own
length, which keeps long jobs from paying for all others. Priority, deadline and tenant scale it.

Two rules override the weights. Where many contend no batch may waste the device: the more candidates of similar weight,
the closer its rate must be to the best available; a heavy candidate next to any number of light ones may run alone. And
nothing starves: of the jobs that were not stepped for `PATIENCE_S`, or for longer where others are more important, the
one that waited too long by most goes first, so with N jobs none waits longer than its patience and N - 1 step batches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from msf_scheduler.active_set import ActiveSet
from msf_scheduler.active_tables import Numbers
from msf_scheduler.array_table import Floats, Int32s
from msf_scheduler.jobs import ModelKey
from msf_scheduler.stage import Stage

PATIENCE_S = 1.0  # of the most important job; others have more, in proportion
MAX_PATIENCE_S = 30.0
MAX_WASTE = 0.05  # of the best available rate, when enough candidates contend to fill the largest bucket
MAX_URGENCY = 16.0
MIN_DIVISOR = 1e-30
REASONS = ("overdue", "deadline", "full", "all", "best")  # of a step batch; see `StepBatch`


class StepBatch(NamedTuple):
    """Samples of one model and stage to advance together, padded to `bucket` rows, and the reason for the choice.

    "overdue": a member's job waited for `PATIENCE_S`; "deadline": a member's slack is below its job's length; "full":
    the largest bucket is filled; "all": every active sample is a member; "best": highest value for its cost.
    """

    model: ModelKey
    stage: Stage
    samples: Numbers  # in the active set
    slots: Int32s
    num_rows: int
    bucket: int
    reason: str


class Hold(NamedTuple):
    """Decision to run nothing yet: choose again at `until`, or when a sample joins before that."""

    until: float


class BatchingPolicy(Protocol):
    """Choice among all active samples of a worker between two steps; None if there are none."""

    def choose(self, active: ActiveSet, now: float) -> StepBatch | Hold | None:
        """Return what to run next, or None without active samples."""
        ...


_Option = tuple[float, float, int, int]  # a possible step batch: value, rate, start and end among the ranked samples


class StepLevelPolicy:
    """Step-level (continuous) batching: every step batch is an independent choice."""

    def choose(self, active: ActiveSet, now: float) -> StepBatch | None:
        """Return a batch of one group, at most its largest bucket; never `Hold`."""
        if not active.num_active:
            return None
        jobs = active.jobs
        longest_waiting = int(jobs.stepped_at[: jobs.end].argmin())
        if now - jobs.stepped_at[longest_waiting] > PATIENCE_S and (overdue := _overdue_job(active, now)) is not None:
            return make_batch(active, _overdue_members(active, overdue), "overdue")
        if active.num_active == 1:
            return make_batch(active, np.array([active.samples.end - 1]), _reason(active, [longest_waiting], now))
        members = _best_members(active, _weigh_jobs(active, now))
        return make_batch(active, members, _reason(active, active.samples.job[members], now))


def _overdue_job(active: ActiveSet, now: float) -> int | None:
    """Return the job that waits too long by most, or None; less important ones have to be more patient."""
    jobs, num_jobs = active.jobs, active.jobs.end
    waits_s = now - jobs.stepped_at[:num_jobs]  # minus infinity without active samples
    importance = np.where(waits_s >= 0, jobs.importance[:num_jobs], MIN_DIVISOR) + MIN_DIVISOR
    excess_s = waits_s - np.minimum(PATIENCE_S * importance.max() / importance, MAX_PATIENCE_S)
    job = int(excess_s.argmax())
    return job if excess_s[job] > 0 else None


def _reason(active: ActiveSet, jobs: Sequence[int] | Numbers, now: float) -> str | None:
    """Return "deadline" if the slack of one of the jobs is below its own length."""
    if now < active.next_alarm_at:
        return None
    seconds_left, seconds = active.seconds()[:, jobs]
    return "deadline" if (active.jobs.deadline[jobs] - now - seconds_left < seconds).any() else None


def _weigh_jobs(active: ActiveSet, now: float) -> Floats:
    """Return each job's weight."""
    jobs, num_jobs = active.jobs, active.jobs.end
    remaining_s, total_s = active.seconds()
    weights = np.maximum(now - jobs.arrived_at[:num_jobs], 0.0)  # age
    weights += remaining_s
    weights /= total_s * remaining_s + MIN_DIVISOR  # slowdown / remaining time
    np.sqrt(weights, out=weights)
    weights *= jobs.importance[:num_jobs]
    if now >= active.next_alarm_at:
        # The urgency is 1 far from a deadline, and grows as the slack shrinks below the time allowed.
        allowed_s = jobs.allowed_s[:num_jobs]
        weights *= allowed_s / np.maximum(jobs.deadline[:num_jobs] - now - remaining_s, allowed_s / MAX_URGENCY)
    return weights


def _best_members(active: ActiveSet, job_weights: Floats) -> Numbers:
    """Return the members of the most valuable batch, of those that do not waste the device."""
    table, end = active.samples, active.samples.end
    rows, weights = table.rows[:end], job_weights[table.job[:end]]
    num_free = end - active.num_active
    if num_free:
        weights[rows == 0] = 0.0
    groups = [(group, size) for group, size in enumerate(active.group_sizes) if size]
    if len(groups) == 1 and not num_free and _is_best_whole(active, groups[0][0], weights, rows):
        return np.arange(end)
    ranked = order = (-weights).argsort(kind="stable")
    if len(groups) > 1 or num_free:
        order = order[table.group[order].argsort(kind="stable")]  # free numbers first; in a group the heaviest first
    total_rows, total_weights = rows[order].cumsum().tolist(), (weights * rows)[order].cumsum().tolist()
    options, start = [], num_free
    for group, size in groups:
        options += _options(active, group, order, range(start, start + size), total_rows, total_weights)
        start += size
    least_rate = (1 - MAX_WASTE) * max([rate for _, rate, _, _ in options])
    _, rate, start, stop = max(options)
    if rate < least_rate:
        heaviest = ranked[: active.largest_bucket]
        least_rate *= _contention(active, weights[heaviest], rows[heaviest]) ** 2
        _, _, start, stop = max(option for option in options if option[1] >= least_rate)
    return order[start:stop]


def _is_best_whole(active: ActiveSet, group: int, weights: Floats, rows: Floats) -> bool:
    """Return whether no part of a group can be worth more than all of it, which fits one bucket.

    At best a part has members of the highest weight only, but not more weight than all.
    """
    costs, stage = active.costs_of(group)
    num_rows = active.group_rows[group]
    buckets = costs.buckets_of(stage, strict=False)
    if num_rows > buckets[-1] or costs.buckets_of(stage, strict=True) != buckets:
        return False
    total, highest = float(weights.dot(rows)), float(weights[weights.argmax()])
    values = []
    for bucket, rate in zip(buckets, costs.rates(stage), strict=True):
        values.append(rate * min(bucket * highest, total))
        if bucket >= num_rows:
            return rate * total >= max(values)
    return False


def _contention(active: ActiveSet, weights: Floats, rows: Floats) -> float:
    """Return how many rows of similar weight contend for the largest bucket, as a share of it, 0 to 1.

    It is the participation ratio of the heaviest: N of equal weight count as N, one that outweighs all others as one.
    The power 3/4 lets moderate differences of weight still count as contention.
    """
    shares = np.sqrt(weights * np.sqrt(weights))
    total, squares = float(shares.dot(rows)), float((shares * rows).dot(shares))
    return min(total**2 / (max(squares, MIN_DIVISOR) * active.largest_bucket), 1.0)


def _options(
    active: ActiveSet,
    group: int,
    order: Numbers,
    ranks: range,
    total_rows: Sequence[float],
    total_weights: Sequence[float],
) -> list[_Option]:
    """Return the heaviest members of a group for every bucket that they fill, and all of them for the next larger.

    A rate is useful device seconds per second of the step batch; the value weighs them. The group has these `ranks` in
    `order`; the totals are cumulated in this order.
    """
    costs, stage = active.costs_of(group)
    buckets, rates = costs.buckets_of(stage, strict=False), costs.rates(stage)
    start, stop = ranks.start, ranks.stop
    rows_before, weights_before = (total_rows[start - 1], total_weights[start - 1]) if start else (0.0, 0.0)
    strict_buckets = costs.buckets_of(stage, strict=True)
    first_strict = stop
    if strict_buckets != buckets:
        is_strict = active.jobs.is_strict[active.samples.job[order[start:stop]]]
        first_strict = start + int(is_strict.argmax()) if is_strict.any() else stop
    options, end = [], start
    for bucket, bucket_rate in zip(buckets, rates, strict=True):
        previous_end, end = end, bisect_right(total_rows, rows_before + bucket, start, stop)
        if end == previous_end:
            continue
        num_rows, rate = total_rows[end - 1] - rows_before, bucket_rate
        if end > first_strict:
            if num_rows > strict_buckets[-1]:
                break
            rate = rates[buckets.index(costs.bucket_for(int(num_rows), strict_buckets))]
        options.append((rate * (total_weights[end - 1] - weights_before), rate * num_rows, start, end))
        if end == stop:
            break
    return options


def _overdue_members(active: ActiveSet, job: int) -> Numbers:
    """Return a batch of a job that waited too long, and of those that waited longest in the same group."""
    samples = active.samples
    group = samples.group[active.samples_of(job)[0]]
    members = np.flatnonzero(samples.group[: samples.end] == group)
    members = members[active.jobs.stepped_at[samples.job[members]].argsort(kind="stable")]
    return first_fitting(active, members)


def first_fitting(active: ActiveSet, members: Numbers) -> Numbers:
    """Return as many of the first as one step batch holds: fewer if one of them is strict."""
    samples = active.samples
    costs, stage = active.costs_of(int(samples.group[members[0]]))
    for is_strict in (False, True):
        largest = costs.buckets_of(stage, strict=is_strict)[-1]
        members = members[: samples.rows[members].cumsum().searchsorted(largest, side="right")]
        if not active.jobs.is_strict[samples.job[members]].any():
            break
    return members


def make_batch(active: ActiveSet, members: Numbers, reason: str | None = None, num_rows: int = 0) -> StepBatch:
    """Return the step batch of some samples of one group; its bucket holds at least `num_rows`."""
    samples = active.samples
    group = int(samples.group[members[0]])
    costs, stage = active.costs_of(group)
    rows = int(np.add.reduce(samples.rows[members]))
    buckets, strict_buckets = (costs.buckets_of(stage, strict=strict) for strict in (False, True))
    is_strict = strict_buckets != buckets and active.jobs.is_strict[samples.job[members]].any()
    bucket = costs.bucket_for(max(rows, num_rows), strict_buckets if is_strict else buckets)
    if reason is None:
        is_full = rows == buckets[-1]
        reason = "full" if is_full else "all" if len(members) == active.num_active else "best"
    return StepBatch(active.key_of(group), stage, members, samples.slot[members], rows, bucket, reason)
