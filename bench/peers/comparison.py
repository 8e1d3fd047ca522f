"""Results of all rounds, and the figures that follow from them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from bench.mixed_load import MIX
from bench.peers.contenders import OURS
from bench.peers.measurements import FRACTIONS, LoadName, LoadRun, PlansAlone
from msf_cli.load.mix import Kind
from msf_cli.load.report import standalone_latencies
from msf_cli.percentiles import percentile

SLO_SCALE = 3.0


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds; not a number if there is none."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values) if self.values else math.nan


@dataclass
class Comparison:
    """Results so far.

    `skipped`: the reason for each peer that could not take part. `pixels`: digest of each server's image for the same
    request; all run the same plans.
    """

    setup: list[str]
    skipped: dict[str, str] = field(default_factory=dict)
    pixels: dict[str, str] = field(default_factory=dict)
    plans: list[PlansAlone] = field(default_factory=list)
    runs: list[LoadRun] = field(default_factory=list)

    def contenders(self, load: LoadName) -> list[str]:
        """Return the servers with results at every level of a load, ours first."""
        levels: dict[str, set[float]] = defaultdict(set)
        for run in self.runs:
            if run.load is load:
                levels[run.contender].add(run.level)
        complete = [name for name, own in levels.items() if len(own) == len(self.levels(load))]
        return sorted(complete, key=lambda name: (name != OURS, name))

    def levels(self, load: LoadName) -> list[float]:
        return sorted({run.level for run in self.runs if run.load is load})

    def offered_rates(self) -> list[float]:
        """Return the rates of the mixed load, with two digits: the same in all rounds."""
        return [float(f"{fraction * self.plans[0].mixed_requests_per_s:.2g}") for fraction in FRACTIONS if self.plans]

    def select(self, contender: str, load: LoadName, level: float) -> list[LoadRun]:
        """Return the runs of a contender, one of each round."""
        return [run for run in self.runs if (run.contender, run.load, run.level) == (contender, load, level)]

    def images_per_s(self, contender: str, load: LoadName, level: float) -> Spread:
        return Spread(tuple(images_per_s(run) for run in self.select(contender, load, level)))

    def latency_ms(self, contender: str, load: LoadName, level: float, share: float) -> Spread:
        """Return a percentile of each round."""
        runs = self.select(contender, load, level)
        return Spread(tuple(1000 * (percentile(latencies_s(run), share) or math.inf) for run in runs))

    def kind_latency_ms(self, contender: str, rate_per_s: float, kind: Kind, share: float) -> float | None:
        """Return a percentile of a kind in the mixed load; rounds are pooled, since some kinds are rare."""
        runs = self.select(contender, LoadName.MIXED, rate_per_s)
        latency_s = percentile([latency for run in runs for latency in latencies_s(run, kind)], share)
        return None if latency_s is None else 1000 * latency_s

    def standalone_s(self, contender: str) -> dict[Kind, float]:
        """Return the median latency of each kind alone on a contender's idle server."""
        never = dict.fromkeys(MIX.kinds, math.inf)
        runs = self.select(contender, LoadName.ALONE, 1)
        return never | standalone_latencies([result for run in runs for result in run.succeeded])

    def objectives_s(self) -> dict[Kind, float]:
        """Return the latency within which each kind should be answered: the same for all, from the fastest server."""
        alone = [self.standalone_s(contender) for contender in self.contenders(LoadName.MIXED)]
        return {kind: SLO_SCALE * min(latencies[kind] for latencies in alone) for kind in MIX.kinds}

    def goodput_per_s(self, contender: str, rate_per_s: float) -> Spread:
        """Return the requests per second of the mixed load that met their objective."""
        objectives = self.objectives_s()
        runs = self.select(contender, LoadName.MIXED, rate_per_s)
        return Spread(tuple(num_within(run, objectives) / run.duration_s for run in runs))

    def plans_ratio(self, level: float) -> Spread:
        """Return our images per second over the plans alone, at their best batch size, by round."""
        alone = {number: max(plans.images_per_s.values()) for number, plans in enumerate(self.plans)}
        return _ratios(self._rates_by_round(OURS, LoadName.CLOSED, level), alone)

    def ratio(self, load: LoadName, level: float, other: str) -> Spread:
        """Return our images per second over another's, by round."""
        return _ratios(*(self._rates_by_round(name, load, level) for name in (OURS, other)))

    def _rates_by_round(self, contender: str, load: LoadName, level: float) -> dict[int, float]:
        return {run.round_number: images_per_s(run) for run in self.select(contender, load, level)}


def images_per_s(run: LoadRun) -> float:
    """Return images per second: of a closed loop, of its duration; of an open loop, until the last answer."""
    num_images = sum(result.kind.num_samples for result in run.succeeded)
    if run.load is LoadName.MIXED:
        return num_images / max((result.ended_s for result in run.succeeded), default=run.duration_s)
    return num_images / run.duration_s


def latencies_s(run: LoadRun, kind: Kind | None = None) -> list[float]:
    return [result.latency_s for result in run.succeeded if kind in (None, result.kind)]


def num_within(run: LoadRun, objectives_s: Mapping[Kind, float]) -> int:
    return sum(result.latency_s <= objectives_s[result.kind] for result in run.succeeded)


def _ratios(values: Mapping[int, float], others: Mapping[int, float]) -> Spread:
    """Divide the values of the rounds in which there are both, and the others' are not zero."""
    return Spread(tuple(value / others[number] for number, value in values.items() if others.get(number)))
