"""Expected values of the dashboard after a load, computed from the load generator's results."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.dashboard.queries import PanelQuery, PrometheusClient
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_scheduler.process_metrics import LATENCY_BUCKETS_S

TOLERANCE = 0.02
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STAGES = ("queue", "base", "residual", "decode", "encode")
DEADLINES = "Deadlines missed"
REFUSED_AT_ONCE = "504 timeout: Refused"  # never became a job, so no job missed its deadline
SeriesKey = tuple[str, str]  # panel title, series name


@dataclass(frozen=True)
class LoadRecord:
    """Results of a load, in Unix seconds; `window_s` reaches from `queried_at` to before the load."""

    results: Sequence[RequestResult]
    started_at: float
    ended_at: float
    queried_at: float
    window_s: float


@dataclass(frozen=True)
class Expectation:
    value: float
    accepts: Callable[[float], bool]


@dataclass(frozen=True)
class SeriesCheck:
    """`value` None: the query returned nothing. `expected` None: the load generator does not know it."""

    panel: str
    series: str
    value: float | None
    expected: float | None
    is_good: bool

    def row(self) -> tuple[str, str, float | None, float | None, str]:
        verdict = "" if self.expected is None else "agrees" if self.is_good else "OFF"
        return self.panel, self.series, self.value, self.expected, "empty" if self.value is None else verdict


def check_series(client: PrometheusClient, queries: Sequence[PanelQuery], record: LoadRecord) -> list[SeriesCheck]:
    """Check every series of every query over the whole load, and report the missing ones."""
    expectations = expected_values(record.results, record.window_s)
    checks = []
    for query in queries:
        series = [one for one in client.at(query.over(record.window_s), record.queried_at) if one.points]
        for one in series:
            key = query.panel, query.series_name(one.labels)
            checks.append(_check(key, one.points[0][1], expectations))
        if not series:
            checks.append(SeriesCheck(query.panel, query.legend, None, None, False))
    # A job misses its deadline in the queue or in a worker; the load generator knows the sum alone.
    num_missed = sum(check.value or 0.0 for check in checks if check.panel == DEADLINES)
    checks.append(_check((DEADLINES, "sum"), num_missed, expectations))
    missing = expectations.keys() - {(check.panel, check.series) for check in checks}
    return checks + [SeriesCheck(*key, None, None, False) for key in sorted(missing)]


def _check(key: SeriesKey, value: float, expectations: Mapping[SeriesKey, Expectation]) -> SeriesCheck:
    expectation = expectations.get(key)
    if expectation is None:
        return SeriesCheck(*key, value, None, True)
    return SeriesCheck(*key, value, expectation.value, expectation.accepts(value))


def expected_values(results: Sequence[RequestResult], window_s: float) -> dict[SeriesKey, Expectation]:
    """Return what each series should show; rates are over `window_s`, which contains the whole load."""
    by_outcome = {outcome: [r for r in results if r.outcome is outcome] for outcome in RequestOutcome}
    succeeded, refused = by_outcome[RequestOutcome.SUCCEEDED], by_outcome[RequestOutcome.REFUSED]
    late, invalid = by_outcome[RequestOutcome.EXPIRED], by_outcome[RequestOutcome.FAILED]
    expired_jobs = [result for result in late if not (result.error or "").startswith(REFUSED_AT_ONCE)]
    num_steps = sum(r.kind.num_samples * ((r.kind.num_steps or 0) + 1) for r in (*succeeded, *expired_jobs))
    counts = {
        ("Requests", ""): len(results),
        ("Requests by outcome", "succeeded"): len(succeeded),
        ("Requests by outcome", "refused"): len(refused),
        ("Requests by outcome", "timeout"): len(late),
        ("Requests by outcome", "invalid"): len(invalid),
        ("Requests by outcome", "error"): 0,
        ("Images returned", "made"): sum(result.kind.num_samples for result in succeeded),
        ("Images returned", "cached"): 0,
        ("Sample steps", "demanded"): num_steps,
        (DEADLINES, "sum"): len(expired_jobs),
        ("Jobs by outcome in workers", "succeeded"): len(succeeded),
        ("Jobs by outcome in workers", "failed"): 0,
        ("Disconnected and rejected callers", "disconnected"): 0,
        ("Disconnected and rejected callers", "invalid_api_key"): 0,
        ("Disconnected and rejected callers", "missing_scope"): 0,
        ("Reclaimed and poisoned jobs", "reclaimed"): 0,
        ("Reclaimed and poisoned jobs", "poisoned"): 0,
    }
    expectations = {key: _near(count / window_s) for key, count in counts.items()}
    expectations["Workers", ""] = _near(2)
    expectations["Failed or refused", ""] = _near((len(refused) + len(late)) / len(results))
    latencies_s = [result.ended_s - result.sent_s for result in succeeded]
    expectations["Latency, p95", ""] = _near_bucket(float(np.percentile(latencies_s, 95)))
    for name, share in QUANTILES.items():
        expectations["Latency of images", name] = _near_bucket(float(np.quantile(latencies_s, share)))
        for stage in STAGES:
            stage_s = [result.timings_ms[stage] / 1000 for result in succeeded]
            expectations[f"Time by stage, {name}", stage] = _near(histogram_quantile(stage_s, share))
    return expectations


def _near(value: float) -> Expectation:
    return Expectation(value, lambda actual: abs(actual - value) <= TOLERANCE * abs(value))


def _near_bucket(value: float) -> Expectation:
    """Accept the value's histogram bucket or the one below: only the client's latency includes HTTP."""
    place = bisect_left(LATENCY_BUCKETS_S, value)
    low = LATENCY_BUCKETS_S[place - 2] if place > 1 else 0.0
    return Expectation(value, lambda actual: low <= actual <= LATENCY_BUCKETS_S[min(place, len(LATENCY_BUCKETS_S) - 1)])


def histogram_quantile(values: Sequence[float], share: float) -> float:
    """Return PromQL's `histogram_quantile` of these values in `LATENCY_BUCKETS_S`: linear within a bucket."""
    rank, num_below = share * len(values), 0
    for lower, upper in zip((0.0, *LATENCY_BUCKETS_S), LATENCY_BUCKETS_S, strict=False):
        num_up_to = sum(value <= upper for value in values)
        if num_up_to >= rank:
            return lower + (upper - lower) * (rank - num_below) / (num_up_to - num_below)
        num_below = num_up_to
    return LATENCY_BUCKETS_S[-1]
