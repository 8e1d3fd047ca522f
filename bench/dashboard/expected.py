"""Expected values of the dashboard after a load, computed from the load generator's results."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.dashboard.load import KEYS, Results
from bench.dashboard.queries import PanelQuery, PrometheusClient
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_scheduler.process_metrics import LATENCY_BUCKETS_S
from msf_server.metrics import JOB_STEPS

TOLERANCE = 0.02
NUM_WORKERS = 2
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
STAGES = ("queue", "base", "residual", "decode", "encode")
DEADLINES = "Deadlines missed"
REFUSED_AT_ONCE = "504 timeout: Refused"  # never became a job, so no job missed its deadline
SeriesKey = tuple[str, str]  # panel title, series name


@dataclass(frozen=True)
class LoadRecord:
    """Results of a load, in Unix seconds; `window_s` reaches from `queried_at` to before the load."""

    results: Results
    num_unknown_keys: int
    started_at: float
    ended_at: float
    queried_at: float
    window_s: float

    @property
    def all_results(self) -> list[RequestResult]:
        """Results of all models."""
        return [result for results in self.results.values() for result in results]


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
        if self.value is None:
            verdict = "no GPU" if self.is_good else "empty"
        return self.panel, self.series, self.value, self.expected, verdict


def check_series(client: PrometheusClient, queries: Sequence[PanelQuery], record: LoadRecord) -> list[SeriesCheck]:
    """Check every series of every query over the whole load, and report the missing ones."""
    expectations = expected_values(record)
    checks = []
    for query in queries:
        series = [one for one in client.at(query.over(record.window_s), record.queried_at) if one.points]
        for one in series:
            key = query.panel, query.series_name(one.labels)
            checks.append(_check(key, one.points[0][1], expectations))
        if not series:
            checks.append(SeriesCheck(query.panel, query.legend, None, None, query.is_optional))

    def total(panel: str) -> float:
        return sum(check.value or 0.0 for check in checks if check.panel == panel)

    # A job misses its deadline in the queue or in a worker; the load generator knows the sum alone.
    checks.append(_check((DEADLINES, "sum"), total(DEADLINES), expectations))
    # All models share the devices, so their shares add up to what the panels next to them show.
    sums = {
        ("Capacity used", "sum"): _near(1 - total("Capacity left")),
        ("Device time by model", "sum"): _near(total("Device busy") / NUM_WORKERS),
    }
    checks += [_check(key, total(key[0]), sums) for key in sums]
    missing = expectations.keys() - {(check.panel, check.series) for check in checks}
    return checks + [SeriesCheck(*key, None, None, False) for key in sorted(missing)]


def _check(key: SeriesKey, value: float, expectations: Mapping[SeriesKey, Expectation]) -> SeriesCheck:
    expectation = expectations.get(key)
    if expectation is None:
        return SeriesCheck(*key, value, None, True)
    return SeriesCheck(*key, value, expectation.value, expectation.accepts(value))


def expected_values(record: LoadRecord) -> dict[SeriesKey, Expectation]:
    """Return what each series should show; rates are over the record's window, which contains the whole load."""
    results = record.all_results
    succeeded, refused = _with(results, RequestOutcome.SUCCEEDED), _with(results, RequestOutcome.REFUSED)
    late, invalid = _with(results, RequestOutcome.EXPIRED), _with(results, RequestOutcome.FAILED)
    counts: dict[SeriesKey, float] = {
        ("Requests", ""): len(results),
        ("Requests by outcome", "succeeded"): len(succeeded),
        ("Requests by outcome", "refused"): len(refused),
        ("Requests by outcome", "timeout"): len(late),
        ("Requests by outcome", "invalid"): len(invalid),
        ("Requests by outcome", "error"): 0,
        (DEADLINES, "sum"): len(_jobs(results)) - len(succeeded),
        ("Jobs by outcome in workers", "succeeded"): len(succeeded),
        ("Jobs by outcome in workers", "failed"): 0,
        ("Disconnected and rejected callers", "disconnected"): 0,
        ("Disconnected and rejected callers", "invalid_api_key"): record.num_unknown_keys,
        ("Disconnected and rejected callers", "missing_scope"): 0,
        ("Reclaimed and poisoned jobs", "reclaimed"): 0,
        ("Reclaimed and poisoned jobs", "poisoned"): 0,
    }
    values: dict[SeriesKey, float] = {
        ("Workers", ""): NUM_WORKERS,
        ("Refused versions", "versions"): 0,
        ("Failed or refused", ""): (len(refused) + len(late)) / len(results),
    }
    for model, model_results in record.results.items():
        jobs, done = _jobs(model_results), _with(model_results, RequestOutcome.SUCCEEDED)
        num_steps = sum(result.kind.num_samples * ((result.kind.num_steps or 0) + 1) for result in jobs)
        counts["Images returned", f"{model} made"] = sum(result.kind.num_samples for result in done)
        counts["Images returned", f"{model} cached"] = 0
        counts["Sample steps demanded", model] = num_steps
        key, _ = KEYS[model]
        counts["Sample steps by API key", key] = num_steps
        counts["Requests by API key", f"{key} succeeded"] = len(done)
        counts["Requests by API key", f"{key} invalid"] = len(_with(model_results, RequestOutcome.FAILED))
        values["Images per job", model] = float(np.mean([result.kind.num_samples for result in jobs]))
        for name, share in {"p50": 0.5, "p95": 0.95}.items():
            steps = [float(result.kind.num_steps or 0) for result in jobs]
            values["Steps per job", f"{model} {name}"] = histogram_quantile(steps, share, JOB_STEPS)
    expectations = {key: _near(count / record.window_s) for key, count in counts.items()}
    latencies_s = [result.ended_s - result.sent_s for result in succeeded]
    for name, share in QUANTILES.items():
        expectations["Latency of images", name] = _near_bucket(float(np.quantile(latencies_s, share)))
        for stage in STAGES:
            stage_s = [result.timings_ms[stage] / 1000 for result in succeeded]
            values[f"Time by stage, {name}", stage] = histogram_quantile(stage_s, share)
    expectations["Latency, p95", ""] = expectations["Latency of images", "p95"]
    return expectations | {key: _near(value) for key, value in values.items()}


def _with(results: Sequence[RequestResult], outcome: RequestOutcome) -> list[RequestResult]:
    return [result for result in results if result.outcome is outcome]


def _jobs(results: Sequence[RequestResult]) -> list[RequestResult]:
    """Return the requests that became jobs."""
    expired = _with(results, RequestOutcome.EXPIRED)
    return _with(results, RequestOutcome.SUCCEEDED) + [
        result for result in expired if not (result.error or "").startswith(REFUSED_AT_ONCE)
    ]


def _near(value: float) -> Expectation:
    return Expectation(value, lambda actual: abs(actual - value) <= TOLERANCE * abs(value))


def _near_bucket(value: float) -> Expectation:
    """Accept the value's histogram bucket or the one below: only the client's latency includes HTTP."""
    place = bisect_left(LATENCY_BUCKETS_S, value)
    low = LATENCY_BUCKETS_S[place - 2] if place > 1 else 0.0
    return Expectation(value, lambda actual: low <= actual <= LATENCY_BUCKETS_S[min(place, len(LATENCY_BUCKETS_S) - 1)])


def histogram_quantile(values: Sequence[float], share: float, buckets: Sequence[float] = LATENCY_BUCKETS_S) -> float:
    """Return PromQL's `histogram_quantile` of these values: linear within a bucket."""
    rank, num_below = share * len(values), 0
    for lower, upper in zip((0.0, *buckets), buckets, strict=False):
        num_up_to = sum(value <= upper for value in values)
        if num_up_to >= rank:
            return lower + (upper - lower) * (rank - num_below) / (num_up_to - num_below)
        num_below = num_up_to
    return buckets[-1]
