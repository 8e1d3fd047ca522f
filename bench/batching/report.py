"""Report of the comparison of batching policies: headlines, tables, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from tabulate import tabulate

from msf_cli.load.chart import Panel, chart
from msf_cli.load.mix import Kind
from msf_cli.load.report import LATE_S, Report, summarize
from msf_cli.load.results import RequestResult

STEP, REQUEST = "step-level", "request-level"
POLICIES = (STEP, REQUEST)
ARRIVALS = ("poisson", "bursty")
SLO_SCALES = (2.0, 3.0, 5.0, 10.0)
HEADLINE_FRACTION, HEADLINE_SCALE, HEADLINE_SHARE = 0.8, 3.0, 0.99

Range = tuple[float, float]  # bounds of a value; equal if it is known, 0 and infinity if nothing is


@dataclass(frozen=True)
class RequestLevelSetting:
    """Maximum samples per batch, and maximum seconds that a batch waits to fill."""

    size: int
    delay_s: float


@dataclass(frozen=True)
class SettingResult:
    """Measurements of one setting. `p99_s` None: its capacity is too small for the common load."""

    setting: RequestLevelSetting
    capacity_per_s: float
    p99_s: float | None = None


@dataclass(frozen=True)
class PolicyLoad:
    """One load on one policy at `fraction` of request-level's capacity."""

    policy: str
    arrivals: str
    fraction: float
    rate_per_s: float
    round: int
    results: Sequence[RequestResult]


@dataclass(frozen=True)
class PolicyComparison:
    """All measurements. `setup`: lines that describe the conditions.

    `settings`: request-level's candidates at `common_rate_per_s`; empty if the setting was given. `capacity_per_s`:
    requests/s at saturation, by policy.
    """

    setup: Sequence[str]
    settings: Sequence[SettingResult]
    common_rate_per_s: float
    best_setting: RequestLevelSetting
    standalone: dict[Kind, float]
    capacity_per_s: dict[str, float]
    loads: Sequence[PolicyLoad]

    def select(self, policy: str, arrivals: str, fraction: float) -> list[PolicyLoad]:
        """Return the rounds of a load."""
        key = policy, arrivals, fraction
        return [load for load in self.loads if (load.policy, load.arrivals, load.fraction) == key]

    def fractions(self, arrivals: str) -> list[float]:
        return sorted({load.fraction for load in self.loads if load.arrivals == arrivals})

    def pool(self, loads: Sequence[PolicyLoad]) -> Report:
        """Summarize the requests of several loads; the report's rates are not those of a single load."""
        return summarize([result for load in loads for result in load.results], self.standalone, SLO_SCALES)

    def p99_ratios(self, arrivals: str) -> list[float]:
        """Return step-level's p99 over request-level's at the headline's load, for each round."""
        step, request = (
            [self.pool([load]).overall.p99_s for load in self.select(policy, arrivals, HEADLINE_FRACTION)]
            for policy in POLICIES
        )
        return [first / second for first, second in zip(step, request, strict=True) if first and second]

    def attainment(self, policy: str, scale: float) -> list[tuple[float, float]]:
        """Return (rate, share of requests within `scale` × standalone latency) of the Poisson loads."""
        groups = [self.select(policy, "poisson", fraction) for fraction in self.fractions("poisson")]
        return [(loads[0].rate_per_s, self.pool(loads).overall.slo_attainment[scale]) for loads in groups]

    def rate_within_objective(self, policy: str) -> Range:
        return rate_meeting(self.attainment(policy, HEADLINE_SCALE), HEADLINE_SHARE)


def rate_meeting(points: Sequence[tuple[float, float]], share: float) -> Range:
    """Return the rate at which attainment first falls below `share`, interpolated between two measured rates.

    `points` are (rate, attainment) by ascending rate. Outside the measured rates the range is open: extrapolation would
    decide the ratio of the policies.
    """
    last: tuple[float, float] | None = None
    for rate, attained in points:
        if attained < share:
            if last is None:
                return 0.0, rate
            crossing = last[0] + (rate - last[0]) * (last[1] - share) / (last[1] - attained)
            return crossing, crossing
        last = rate, attained
    return (0.0 if last is None else last[0]), math.inf


def ratio(one: Range, other: Range) -> Range:
    return one[0] / other[1], (one[1] / other[0] if other[0] else math.inf)


def markdown(comparison: PolicyComparison) -> str:
    capacities = ", ".join(f"{policy} {rate:.1f}" for policy, rate in comparison.capacity_per_s.items())
    alone = ", ".join(f"{kind.name}: {1000 * latency_s:.0f}" for kind, latency_s in comparison.standalone.items())
    sections = [
        "# Step-level against request-level batching",
        "\n".join(f"- {line}" for line in comparison.setup),
        "\n".join(f"- {line}" for line in _headlines(comparison)),
        "![p99 and objectives met against the rate](plot.svg)",
        "## Setting of request-level batching",
        _settings_section(comparison),
        "## Loads",
        f"Capacity at saturation (32 requests in flight), requests/s: {capacities}. Standalone latencies (the lower of "
        f"the policies' medians), ms: {alone}. Rounds are pooled; images/s is their mean.",
        *(_loads_table(comparison, arrivals) for arrivals in ARRIVALS),
    ]
    return "\n\n".join(sections) + "\n"


def plot(comparison: PolicyComparison) -> str:
    """Return an SVG of p99, and of the share of requests within the headline's objective, against the rate."""
    p99s: dict[str, list[tuple[float, float]]] = {policy: [] for policy in POLICIES}
    for policy, points in p99s.items():
        for fraction in comparison.fractions("poisson"):
            loads = comparison.select(policy, "poisson", fraction)
            p99_s = comparison.pool(loads).overall.p99_s
            if p99_s is not None:
                points.append((loads[0].rate_per_s, p99_s))
    attained = {policy: comparison.attainment(policy, HEADLINE_SCALE) for policy in POLICIES}
    return chart(
        [
            Panel("p99 latency, s", "requests/s", p99s, "{:g}".format, log_y=True),
            Panel(f"within {HEADLINE_SCALE:g} × standalone latency", "requests/s", attained, "{:.0%}".format),
        ]
    )


def _headlines(comparison: PolicyComparison) -> list[str]:
    lines = []
    for arrivals in ARRIVALS:
        ratios = comparison.p99_ratios(arrivals)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"**p99 at {HEADLINE_FRACTION:.0%} of request-level's capacity, {arrivals}: {median(ratios):.2f} ×** "
            f"request-level's (median of rounds: {rounds})"
        )
    step, request = (comparison.rate_within_objective(policy) for policy in POLICIES)
    lines.append(
        f"**rate at which {HEADLINE_SHARE:.0%} of requests end within {HEADLINE_SCALE:g} × standalone latency: "
        f"{_range_text(ratio(step, request))} ×** request-level's "
        f"({_range_text(step)} against {_range_text(request)} requests/s, interpolated between measured rates)"
    )
    late = comparison.pool(comparison.loads).late_share
    return [*lines, f"{late:.1%} of the requests were sent more than {1000 * LATE_S:g} ms late"]


def _range_text(bounds: Range) -> str:
    low, high = bounds
    if low == high:
        return f"{low:.1f}"
    if high < math.inf:
        return f"at most {high:.1f}"
    return f"at least {low:.1f}" if low else "unknown"


def _settings_section(comparison: PolicyComparison) -> str:
    setting = comparison.best_setting
    choice = f"Batches of at most {setting.size} samples that wait at most {setting.delay_s:g} s"
    if not comparison.settings:
        return f"{choice}, as given."
    rows = []
    for result in comparison.settings:
        p99 = "too slow" if result.p99_s is None else f"{result.p99_s:.2f}"
        rows.append([result.setting.size, f"{result.setting.delay_s:g}", f"{result.capacity_per_s:.1f}", p99])
    return (
        f"{choice}: the lowest p99 at {comparison.common_rate_per_s:.1f} requests/s, {HEADLINE_FRACTION:.0%} of the "
        f"largest capacity. All settings get the same load: loads relative to their own would favour slow ones.\n\n"
        f"{_table(rows, ['batch size', 'delay, s', 'capacity, requests/s', 'p99, s'])}"
    )


def _loads_table(comparison: PolicyComparison, arrivals: str) -> str:
    head = ["arrivals", "of capacity", "requests/s", "policy", "requests", "not succeeded"]
    head += ["images/s", "p50, s", "p95, s", "p99, s", *(f"within {scale:g}×" for scale in SLO_SCALES)]
    rows = []
    for fraction in comparison.fractions(arrivals):
        for policy in POLICIES:
            loads = comparison.select(policy, arrivals, fraction)
            group = comparison.pool(loads).overall
            images_per_s = mean(comparison.pool([load]).images_per_s for load in loads)
            latencies = ["-" if value is None else f"{value:.2f}" for value in (group.p50_s, group.p95_s, group.p99_s)]
            shares = [f"{share:.1%}" for share in group.slo_attainment.values()]
            num_missing = group.num_requests - group.outcomes.get("succeeded", 0)
            row = [arrivals, f"{fraction:g}", f"{loads[0].rate_per_s:.1f}", policy, group.num_requests, num_missing]
            rows.append([*row, f"{images_per_s:.1f}", *latencies, *shares])
    return _table(rows, head)


def _table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
