"""Report of the comparison of batching policies."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from bench.batching.report import (
    POLICIES,
    REQUEST,
    STEP,
    PolicyComparison,
    PolicyLoad,
    RequestLevelSetting,
    SettingResult,
    markdown,
    plot,
    rate_meeting,
    ratio,
)
from msf_cli.load.mix import Kind
from msf_cli.load.results import RequestOutcome, RequestResult

KIND = Kind(20, 1)
ALONE_S = 0.1


def load(policy: str, arrivals: str, fraction: float, number: int, latencies_s: list[float]) -> PolicyLoad:
    results = [RequestResult(KIND, 0.0, 0.0, latency_s, RequestOutcome.SUCCEEDED, 200) for latency_s in latencies_s]
    return PolicyLoad(policy, arrivals, fraction, 10 * fraction, number, results)


@pytest.fixture
def comparison() -> PolicyComparison:
    loads = []
    for number in range(3):
        for policy, latency_s in ((STEP, 0.2), (REQUEST, 0.5 + 0.5 * number)):
            loads.append(load(policy, "poisson", 0.4, number, [0.1] * 4))
            loads.append(load(policy, "poisson", 0.8, number, [0.1, 0.1, 0.1, latency_s]))
            loads.append(load(policy, "bursty", 0.8, number, [latency_s]))
    settings = [SettingResult(RequestLevelSetting(1, 0.0), 5.0), SettingResult(RequestLevelSetting(8, 0.02), 10.0, 0.9)]
    return PolicyComparison(
        ["a machine"], settings, 8.0, settings[1].setting, {KIND: ALONE_S}, {STEP: 20.0, REQUEST: 10.0}, loads
    )


@pytest.mark.parametrize(
    ("points", "low", "high"),
    [
        ([(2.0, 1.0), (4.0, 0.98)], 3.0, 3.0),
        ([(4.0, 0.96)], 0.0, 4.0),
        ([(2.0, 0.995), (4.0, 0.99)], 4.0, math.inf),
        ([(2.0, 1.0), (4.0, 0.98), (6.0, 1.0)], 3.0, 3.0),  # a later recovery does not count
    ],
)
def test_the_rate_that_meets_an_objective_is_interpolated_only_between_measured_rates(
    points: list[tuple[float, float]], low: float, high: float
) -> None:
    assert rate_meeting(points, 0.99) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((6.0, 6.0), (2.0, 2.0), 3.0, 3.0),
        ((6.0, math.inf), (2.0, 2.0), 3.0, math.inf),
        ((6.0, 6.0), (0.0, 2.0), 3.0, math.inf),
        ((0.0, 6.0), (2.0, math.inf), 0.0, 3.0),
        ((0.0, 6.0), (0.0, 2.0), 0.0, math.inf),
    ],
)
def test_a_ratio_of_ranges_has_both_bounds(
    one: tuple[float, float], other: tuple[float, float], low: float, high: float
) -> None:
    assert ratio(one, other) == (low, high)


def test_ratios_compare_each_round_with_itself(comparison: PolicyComparison) -> None:
    assert comparison.p99_ratios("poisson") == pytest.approx([0.4, 0.2, 0.2 / 1.5])
    assert comparison.attainment(STEP, 3.0) == [(4.0, 1.0), (8.0, 1.0)]
    assert comparison.attainment(REQUEST, 3.0) == [(4.0, 1.0), (8.0, 0.75)]


def test_the_report_has_headlines_and_a_row_for_each_load(comparison: PolicyComparison) -> None:
    text = re.sub(" +", " ", markdown(comparison))
    assert "p99 at 80% of request-level's capacity, poisson: 0.20 ×" in text
    # Step-level never falls below 99 % and request-level does at 4 + 4 * 0.01 / 0.25.
    assert "at least 1.9 ×** request-level's (at least 8.0 against 4.2 requests/s" in text
    assert "| 1 | 0 | 5.0 | too slow |" in text
    for policy in POLICIES:
        assert f"| poisson | 0.8 | 8.0 | {policy} | 12 | 0 |" in text
    assert "as given" in markdown(replace(comparison, settings=[]))


def test_the_plot_is_svg_with_a_line_for_each_policy(comparison: PolicyComparison) -> None:
    root = ElementTree.fromstring(plot(comparison))
    names = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(names.count(policy) == 2 for policy in POLICIES)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 8
