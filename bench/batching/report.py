"""What the comparison of batching policies shows: headlines, tables, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from msf_cli.load.chart import Panel, chart
from msf_cli.load.mix import Kind
from msf_cli.load.report import LATE_S, Report, summarize
from msf_cli.load.results import RequestResult

STEP, REQUEST = "step-level", "request-level"
POLICIES = (STEP, REQUEST)
SLO_SCALES = (2.0, 3.0, 5.0, 10.0)
HEADLINE_FRACTION, HEADLINE_SCALE, HEADLINE_SHARE = 0.8, 3.0, 0.99

Range = tuple[float, float]  # where a figure lies; both the same when it is known, 0 and infinity when it is not


@dataclass(frozen=True)
class Setting:
    """Request-level batching's: the samples of a batch, and how long it waits for company."""

    size: int
    delay_s: float


@dataclass(frozen=True)
class Trial:
    """What a setting gave. `p99_s` None: its capacity was too small for the trials' load."""

    setting: Setting
    capacity_per_s: float
    p99_s: float | None = None


@dataclass(frozen=True)
class Cell:
    """One load on one policy; `fraction`: of request-level's capacity."""

    policy: str
    arrivals: str
    fraction: float
    rate_per_s: float
    round: int
    results: Sequence[RequestResult]


@dataclass(frozen=True)
class Comparison:
    """`setup`: lines on how it was made. `trials`: at `trial_rate_per_s`; empty when the setting was given.
    `capacity_per_s`: requests/s at saturation, by policy.
    """

    setup: Sequence[str]
    trials: Sequence[Trial]
    trial_rate_per_s: float
    chosen: Setting
    standalone: dict[Kind, float]
    capacity_per_s: dict[str, float]
    cells: Sequence[Cell]

    def find(self, policy: str, arrivals: str, fraction: float | None = None) -> list[Cell]:
        return [
            cell
            for cell in self.cells
            if (cell.policy, cell.arrivals) == (policy, arrivals) and fraction in (None, cell.fraction)
        ]

    def fractions(self, arrivals: str) -> list[float]:
        return sorted({cell.fraction for cell in self.cells if cell.arrivals == arrivals})

    def report(self, cells: Sequence[Cell]) -> Report:
        """Of all their requests together; its rates are not those of a single load."""
        return summarize([result for cell in cells for result in cell.results], self.standalone, SLO_SCALES)

    def p99_ratios(self, arrivals: str) -> list[float]:
        """Step-level's p99 over request-level's, in each round, at the headline's load."""
        step, request = (self.find(policy, arrivals, HEADLINE_FRACTION) for policy in POLICIES)
        pairs = [
            (self.report([a]).overall.p99_s, self.report([b]).overall.p99_s) for a, b in zip(step, request, strict=True)
        ]
        return [first / second for first, second in pairs if first and second]

    def attainment(self, policy: str, scale: float) -> list[tuple[float, float]]:
        """(rate, share of requests within `scale` x alone) of the Poisson loads."""
        groups = [self.find(policy, "poisson", fraction) for fraction in self.fractions("poisson")]
        return [(cells[0].rate_per_s, self.report(cells).overall.attainment[scale]) for cells in groups]


def rate_meeting(points: Sequence[tuple[float, float]], share: float) -> Range:
    """Where the rate lies at which attainment first falls below `share`: interpolated between two rates, or outside
    all that were tried.

    `points` are (rate, attainment) by ascending rate. Below the lowest nothing is interpolated: what was not measured
    would decide the ratio.
    """
    last: tuple[float, float] | None = None
    for rate, attained in points:
        if attained < share:
            if last is None:
                return 0.0, rate
            found = last[0] + (rate - last[0]) * (last[1] - share) / (last[1] - attained)
            return found, found
        last = rate, attained
    return (0.0 if last is None else last[0]), math.inf


def ratio(one: Range, other: Range) -> Range:
    return one[0] / other[1], (one[1] / other[0] if other[0] else math.inf)


def markdown(comparison: Comparison) -> str:
    capacities = ", ".join(f"{policy} {rate:.1f}" for policy, rate in comparison.capacity_per_s.items())
    alone = ", ".join(f"{kind.name}: {1000 * latency_s:.0f}" for kind, latency_s in comparison.standalone.items())
    sections = [
        "# Step-level against request-level batching",
        "\n".join(f"- {line}" for line in comparison.setup),
        "\n".join(f"- {line}" for line in _headlines(comparison)),
        "![p99 and objectives met against the rate](plot.svg)",
        "## Request-level's own setting",
        _choice(comparison),
        "## Loads",
        f"Capacity at saturation (32 requests always under way), requests/s: {capacities}. Standalone latencies, the "
        f"lower of both policies' medians, in ms: {alone}. Rounds are pooled; images/s is their mean.",
        _loads_table(comparison, "poisson"),
        _loads_table(comparison, "bursty"),
    ]
    return "\n\n".join(sections) + "\n"


def plot(comparison: Comparison) -> str:
    """SVG: p99, and the share of requests within the headline's objective, against the rate."""

    def p99(policy: str) -> list[tuple[float, float]]:
        groups = [comparison.find(policy, "poisson", fraction) for fraction in comparison.fractions("poisson")]
        found = [(cells[0].rate_per_s, comparison.report(cells).overall.p99_s) for cells in groups]
        return [(rate, value) for rate, value in found if value is not None]

    met = {policy: comparison.attainment(policy, HEADLINE_SCALE) for policy in POLICIES}
    return chart(
        [
            Panel(
                "p99 latency, s", "requests/s", {policy: p99(policy) for policy in POLICIES}, "{:g}".format, log_y=True
            ),
            Panel(f"answered within {HEADLINE_SCALE:g} x alone", "requests/s", met, "{:.0%}".format),
        ]
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All figures, by cell; single requests are left out."""
    return {
        "setup": list(comparison.setup),
        "trials": [asdict(trial) for trial in comparison.trials],
        "trial_rate_per_s": comparison.trial_rate_per_s,
        "chosen": asdict(comparison.chosen),
        "standalone_s": {kind.name: latency_s for kind, latency_s in comparison.standalone.items()},
        "capacity_per_s": comparison.capacity_per_s,
        "p99_ratios": {arrivals: comparison.p99_ratios(arrivals) for arrivals in ("poisson", "bursty")},
        "rate_meeting": {
            policy: [bound if bound < math.inf else None for bound in _rate_meeting(comparison, policy)]
            for policy in POLICIES
        },
        "cells": [
            {
                "policy": cell.policy,
                "arrivals": cell.arrivals,
                "fraction": cell.fraction,
                "rate_per_s": cell.rate_per_s,
                "round": cell.round,
                **asdict(comparison.report([cell])),
            }
            for cell in comparison.cells
        ],
    }


def _headlines(comparison: Comparison) -> list[str]:
    lines = []
    for arrivals in ("poisson", "bursty"):
        ratios = comparison.p99_ratios(arrivals)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"**p99 at {HEADLINE_FRACTION:.0%} of request-level's capacity, {arrivals}: {median(ratios):.2f} times** "
            f"request-level's (median of rounds: {rounds})"
        )
    step, request = (_rate_meeting(comparison, policy) for policy in POLICIES)
    lines.append(
        f"**rate at which {HEADLINE_SHARE:.0%} of requests are answered within {HEADLINE_SCALE:g} x alone: "
        f"{_range_text(ratio(step, request))} times** request-level's "
        f"({_range_text(step)} against {_range_text(request)} requests/s, interpolated between those tried)"
    )
    late = comparison.report(comparison.cells).late_share
    lines.append(f"{late:.1%} of the requests were sent more than {1000 * LATE_S:g} ms late")
    return lines


def _rate_meeting(comparison: Comparison, policy: str) -> Range:
    return rate_meeting(comparison.attainment(policy, HEADLINE_SCALE), HEADLINE_SHARE)


def _range_text(bounds: Range) -> str:
    low, high = bounds
    if low == high:
        return f"{low:.1f}"
    if high < math.inf:
        return f"at most {high:.1f}"
    return f"at least {low:.1f}" if low else "unknown"


def _choice(comparison: Comparison) -> str:
    size, delay_s = comparison.chosen.size, comparison.chosen.delay_s
    choice = f"Batches of at most {size} samples that wait {delay_s:g} s at most"
    if not comparison.trials:
        return f"{choice}, without trials."
    rows = [["batch size", "delay, s", "capacity, requests/s", "p99, s"]]
    for trial in comparison.trials:
        p99 = "too slow" if trial.p99_s is None else f"{trial.p99_s:.2f}"
        rows.append([str(trial.setting.size), f"{trial.setting.delay_s:g}", f"{trial.capacity_per_s:.1f}", p99])
    return (
        f"{choice}: the lowest p99 at {comparison.trial_rate_per_s:.1f} requests/s, {HEADLINE_FRACTION:.0%} of the "
        f"largest capacity found. All settings meet the same load: each at its own would favour the slowest.\n\n"
        f"{markdown_table(rows)}"
    )


def _loads_table(comparison: Comparison, arrivals: str) -> str:
    head = [
        "arrivals",
        "of capacity",
        "requests/s",
        "policy",
        "requests",
        "not succeeded",
        "images/s",
        "p50, s",
        "p95, s",
        "p99, s",
    ]
    rows = [[*head, *(f"within {scale:g}x" for scale in SLO_SCALES)]]
    for fraction in comparison.fractions(arrivals):
        for policy in POLICIES:
            cells = comparison.find(policy, arrivals, fraction)
            group = comparison.report(cells).overall
            images_per_s = mean(comparison.report([cell]).images_per_s for cell in cells)
            latencies = ["-" if value is None else f"{value:.2f}" for value in (group.p50_s, group.p95_s, group.p99_s)]
            shares = [f"{share:.1%}" for share in group.attainment.values()]
            missing = group.num_requests - group.outcomes.get("succeeded", 0)
            rows.append(
                [arrivals, f"{fraction:g}", f"{cells[0].rate_per_s:.1f}", policy, str(group.num_requests), str(missing),
                 f"{images_per_s:.1f}", *latencies, *shares]
            )  # fmt: skip
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
