"""The report's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msf_cli.load.mix import Kind
from msf_cli.load.report import standalone_latencies, summarize
from msf_cli.load.results import RequestOutcome, RequestResult
from msf_cli.load.text import report_text, sweep_text
from msf_cli.percentiles import percentile

SHORT, LONG = Kind(4, 1), Kind(100, 4)


def result(
    kind: Kind, due_s: float, latency_s: float, outcome: RequestOutcome = RequestOutcome.SUCCEEDED, late_s: float = 0.0
) -> RequestResult:
    timings = {"queue": 250 * latency_s} if outcome is RequestOutcome.SUCCEEDED else {}
    error = None if outcome is RequestOutcome.SUCCEEDED else "429 queue_full: full"
    return RequestResult(kind, due_s, due_s + late_s, due_s + latency_s, outcome, error=error, timings_ms=timings)


def test_a_percentile_is_an_observed_value() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([], 0.5) is None


def test_objectives_are_multiples_of_standalone_latency_and_failures_miss_them() -> None:
    results = [
        result(SHORT, 0.0, 0.2),
        result(SHORT, 1.0, 0.31),  # above 3 x alone
        result(LONG, 2.0, 5.9),
        result(LONG, 3.0, 0.01, RequestOutcome.REFUSED),
    ]
    report = summarize(results, {SHORT: 0.1, LONG: 2.0}, (2.0, 3.0, 5.0))
    assert report.overall.slo_attainment == {2.0: 0.25, 3.0: 0.5, 5.0: 0.75}
    assert report.kinds[SHORT.name].slo_attainment == {2.0: 0.5, 3.0: 0.5, 5.0: 1.0}
    assert report.kinds[LONG.name].slo_attainment == {2.0: 0.0, 3.0: 0.5, 5.0: 0.5}
    assert report.overall.goodput_per_s == {2.0: 1 / 7.9, 3.0: 2 / 7.9, 5.0: 3 / 7.9}
    assert summarize(results, {}, (2.0,)).overall.slo_attainment == {}


def test_an_objective_of_the_trace_replaces_the_multiple() -> None:
    results = [replace(result(SHORT, 0.0, 0.2), slo_s=0.3), replace(result(SHORT, 1.0, 0.2), slo_s=0.1)]
    for standalone in ({}, {SHORT: 0.001}):
        overall = summarize(results, standalone, (3.0,)).overall
        assert overall.slo_attainment == {3.0: 0.5}
        assert overall.goodput_per_s == {3.0: 1 / 1.2}


def test_throughput_and_percentiles_count_successes_only() -> None:
    results = [
        result(SHORT, 0.0, 1.0),
        result(LONG, 1.0, 3.0),
        result(LONG, 2.0, 0.001, RequestOutcome.REFUSED, late_s=0.5),
    ]
    report = summarize(results, {}, ())
    assert report.elapsed_s == 4.0
    assert (report.requests_per_s, report.images_per_s) == (0.5, 1.25)
    assert report.late_share == pytest.approx(1 / 3)
    assert report.overall.outcomes == {"succeeded": 2, "refused": 1}
    assert (report.overall.p50_s, report.overall.p99_s) == (1.0, 3.0)
    assert report.overall.queue_p50_s == 0.25
    assert report.errors == {"429 queue_full: full": 1}
    assert list(report.kinds) == [SHORT.name, LONG.name]


def test_standalone_latencies_are_medians_by_kind() -> None:
    alone = [result(SHORT, 0.0, latency_s) for latency_s in (0.1, 9.0, 0.2)] + [result(LONG, 0.0, 2.0)]
    assert standalone_latencies(alone) == {SHORT: pytest.approx(0.2), LONG: 2.0}


def test_an_empty_load_has_a_report() -> None:
    report = summarize([], {SHORT: 0.1}, (3.0,))
    assert (report.elapsed_s, report.requests_per_s, report.overall.p99_s) == (0.0, 0.0, None)
    assert "nothing sent" in report_text(report, {SHORT: 0.1})


def test_the_table_is_aligned_and_a_late_generator_is_reported() -> None:
    report = summarize([result(SHORT, 0.0, 0.123, late_s=0.006)], {SHORT: 0.1}, (2.0, 3.0))
    first, head, _, *rows, late = report_text(report, {SHORT: 0.1}).splitlines()
    assert "1 succeeded" in first
    assert {len(row) for row in rows} == {len(head)}
    assert " ".join(rows[1].split()) == "4 steps, n=1 1 1 123.0 123.0 123.0 100.0% 100.0% 30.8 100.0"
    assert "100% of the requests were sent more than 5 ms late" in late
    assert sweep_text([(5.0, report)]).splitlines()[2].split()[:3] == ["5.00", "1", "1"]
