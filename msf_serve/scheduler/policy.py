"""Which samples advance next. Pure: no clock, no Redis; the same candidates always give the same batch.

Samples that share a stage and a plan (guided or not) can ride together. The fullest such group goes first: the
others gather company meanwhile, so that samples drift into step and network evaluations run full. Patience has
an end: once the sample that has been here longest is older than `PATIENCE_S`, its group goes whatever its size.
The oldest of a group ride first, so that sample advances at every step until it is done: nothing starves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

PATIENCE_S = 1.0


class Stage(StrEnum):
    BASE = "base"
    RESIDUAL = "residual"
    DECODE = "decode"


_ORDER = {stage: place for place, stage in enumerate(Stage)}


@dataclass(frozen=True)
class Candidate:
    """A sample in a slot that could take its next step; `joined_at` is in seconds on the clock of `now`."""

    slot: int
    stage: Stage
    guided: bool
    joined_at: float
    num_steps_left: int


@dataclass(frozen=True)
class StepBatch:
    """Slots to advance together. `reason`: "oldest" (patience ended), "full" (fills the largest bucket) or
    "fullest" (nothing is full; this group is the largest)."""

    stage: Stage
    guided: bool
    slots: tuple[int, ...]
    reason: str


def choose(candidates: Sequence[Candidate], *, buckets: Sequence[int], now: float) -> StepBatch | None:
    """The next step batch of at most `max(buckets)` samples, or None when there is nothing to do."""
    if not candidates:
        return None
    max_size = max(buckets)
    groups: dict[tuple[Stage, bool], list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=_seniority):
        groups[candidate.stage, candidate.guided].append(candidate)

    oldest = min(candidates, key=_seniority)
    if now - oldest.joined_at > PATIENCE_S:
        group, reason = groups[oldest.stage, oldest.guided], "oldest"
    else:
        # Among equally full groups the later stage goes first: it frees slots and completes jobs soonest.
        group = min(
            groups.values(),
            key=lambda g: (-min(len(g), max_size), -_ORDER[g[0].stage], _seniority(g[0])),
        )
        reason = "full" if len(group) >= max_size else "fullest"
    slots = tuple(candidate.slot for candidate in group[:max_size])
    return StepBatch(stage=group[0].stage, guided=group[0].guided, slots=slots, reason=reason)


def _seniority(candidate: Candidate) -> tuple[float, int, int]:
    return candidate.joined_at, candidate.num_steps_left, candidate.slot
