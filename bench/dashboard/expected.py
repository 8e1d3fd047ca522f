"""What the board should show after a load, from what the load generator counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.dashboard.prometheus import Prometheus
from bench.dashboard.queries import Query
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_scheduler.histogram_buckets import LATENCY_BUCKETS_S

TOLERANCE = 0.02
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
REFUSED_AT_ONCE = "504 timeout: Refused"  # never became a job, so no job missed its deadline
Key = tuple[str, str]  # title of a panel, name of a series


@dataclass(frozen=True)
class Loaded:
    """What was sent and what came back. Times are Unix seconds; `window_s` reaches back to before the load."""

    results: Sequence[RequestResult]
    began_at: float
    ended_at: float
    asked_at: float
    window_s: float


@dataclass(frozen=True)
class Check:
    """`seen` None: the query was answered with nothing. `expected` None: the load generator does not know."""

    panel: str
    series: str
    seen: float | None
    expected: float | None
    is_good: bool

    def row(self) -> str:
        seen, expected = (("-" if value is None else f"{value:.4g}") for value in (self.seen, self.expected))
        verdict = "empty" if self.seen is None else "" if self.expected is None else "agrees" if self.is_good else "OFF"
        return f"| {self.panel} | {self.series} | {seen} | {expected} | {verdict} |"


def checks(prometheus: Prometheus, queries: Sequence[Query], loaded: Loaded) -> list[Check]:
    """Every series of every query, over the whole load; and every series that is missing."""
    expected = expectations(loaded.results, loaded.window_s)
    found = []
    for query in queries:
        series = {
            query.name(answer.labels): answer.points[0][1]
            for answer in prometheus.at(query.over(loaded.window_s), loaded.asked_at)
            if answer.points
        }
        found += [_check(query.panel, name, value, expected) for name, value in series.items()]
        if not series:
            found.append(Check(query.panel, query.legend, None, None, False))
    found.append(_missed(found, loaded))
    shown = {(check.panel, check.series) for check in found}
    return found + [Check(*key, None, None, False) for key in expected if key not in shown]


def _missed(found: Sequence[Check], loaded: Loaded) -> Check:
    """A missed deadline is seen where the job was, which the load generator cannot know; so both together."""
    seen = sum(check.seen or 0.0 for check in found if check.panel == "Deadlines missed")
    wanted = _near(len(_missed_jobs(loaded.results)) / loaded.window_s)
    return Check("Deadlines missed", "both", seen, wanted.value, wanted.agrees(seen))


def _missed_jobs(results: Sequence[RequestResult]) -> list[RequestResult]:
    late = [result for result in results if result.outcome is RequestOutcome.EXPIRED]
    return [result for result in late if not (result.error or "").startswith(REFUSED_AT_ONCE)]


def _check(panel: str, name: str, value: float, expected: Mapping[Key, Expected]) -> Check:
    wanted = expected.get((panel, name))
    if wanted is None:
        return Check(panel, name, value, None, True)
    return Check(panel, name, value, wanted.value, wanted.agrees(value))


@dataclass(frozen=True)
class Expected:
    value: float
    agrees: Callable[[float], bool]


def _near(value: float) -> Expected:
    return Expected(value, lambda seen: abs(seen - value) <= TOLERANCE * abs(value))


def _in_bucket(value: float) -> Expected:
    """What a client saw and a server did not quite: within the histogram's resolution, HTTP's part being in the client.

    That is its bucket or the one below.
    """
    place = bisect_left(LATENCY_BUCKETS_S, value)
    least = LATENCY_BUCKETS_S[place - 2] if place > 1 else 0.0
    return Expected(value, lambda seen: least <= seen <= LATENCY_BUCKETS_S[min(place, len(LATENCY_BUCKETS_S) - 1)])


def expectations(results: Sequence[RequestResult], window_s: float) -> dict[Key, Expected]:
    """By panel and series; rates are over `window_s`, in which all of the load was."""
    by_outcome = {outcome: [r for r in results if r.outcome is outcome] for outcome in RequestOutcome}
    succeeded, refused = by_outcome[RequestOutcome.SUCCEEDED], by_outcome[RequestOutcome.REFUSED]
    late, invalid = by_outcome[RequestOutcome.EXPIRED], by_outcome[RequestOutcome.FAILED]
    admitted = [*succeeded, *_missed_jobs(results)]
    num_steps = sum(result.kind.num_samples * ((result.kind.num_steps or 0) + 1) for result in admitted)

    def rate(count: float) -> Expected:
        return _near(count / window_s)

    expected = {
        ("Requests", ""): rate(len(results)),
        ("Failed or refused", ""): _near((len(refused) + len(late)) / len(results)),
        ("Workers", ""): _near(2),
        ("Requests by outcome", "succeeded"): rate(len(succeeded)),
        ("Requests by outcome", "refused"): rate(len(refused)),
        ("Requests by outcome", "timeout"): rate(len(late)),
        ("Requests by outcome", "invalid"): rate(len(invalid)),
        ("Requests by outcome", "error"): rate(0),
        ("Images returned", "made"): rate(sum(result.kind.num_samples for result in succeeded)),
        ("Images returned", "cached"): rate(0),
        ("Sample steps", "demanded"): rate(num_steps),
        ("Jobs by how they ended in workers", "succeeded"): rate(len(succeeded)),
        ("Jobs by how they ended in workers", "failed"): rate(0),
        ("Callers that left, or were not let in", "left"): rate(0),
        ("Callers that left, or were not let in", "invalid_api_key"): rate(0),
        ("Callers that left, or were not let in", "missing_scope"): rate(0),
        ("Taken back and given up", "reclaimed"): rate(0),
        ("Taken back and given up", "poisoned"): rate(0),
    }
    latencies = [result.ended_s - result.sent_s for result in succeeded]
    expected["Latency, p95", ""] = _in_bucket(_exact(latencies, 0.95))
    for name, share in QUANTILES.items():
        expected["Latency of images", name] = _in_bucket(_exact(latencies, share))
        for stage in ("queue", "base", "residual", "decode", "encode"):
            told_s = [result.timings_ms[stage] / 1000 for result in succeeded]
            expected[f"Time by stage, {name}", stage] = _near(histogram_quantile(told_s, share))
    return expected


def _exact(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def histogram_quantile(values: Sequence[float], share: float) -> float:
    """What Prometheus makes of these values in buckets of `LATENCY_BUCKETS_S`: linear within a bucket."""
    rank, below = share * len(values), 0
    for lower, upper in zip((0.0, *LATENCY_BUCKETS_S), LATENCY_BUCKETS_S, strict=False):
        up_to = sum(value <= upper for value in values)
        if up_to >= rank:
            return lower + (upper - lower) * (rank - below) / (up_to - below)
        below = up_to
    return LATENCY_BUCKETS_S[-1]
