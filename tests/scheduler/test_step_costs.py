"""Costs of step batches, from measurements and from plain data."""

from __future__ import annotations

import json

import pytest

from msf_scheduler.stage import Stage
from msf_scheduler.step_costs import StepCost, StepCosts, StepPattern

PATTERN = StepPattern.of([2] * 5, [1, 2], [1])


def test_unmeasured_buckets_cost_what_the_nearest_measured_one_does() -> None:
    measured = StepCosts((1, 2, 4))
    assert measured.mean_s(Stage.BASE, 4) == 0.0
    measured.observe(Stage.BASE, 2, 0.02)
    assert measured.mean_s(Stage.BASE, 4) == pytest.approx(0.02)
    assert measured.mean_s(Stage.BASE, 1) == pytest.approx(0.02)
    measured.observe(Stage.BASE, 4, 0.024)
    assert measured.share_s(Stage.BASE) == pytest.approx(0.006)
    measured.observe(Stage.BASE, 4, 0.004)
    assert measured.share_s(Stage.BASE) == pytest.approx(measured.mean_s(Stage.BASE, 4) / 4)


def test_work_is_estimated_by_rows_in_the_most_efficient_bucket() -> None:
    measured = StepCosts((1, 4))
    for stage, alone_s in ((Stage.BASE, 0.02), (Stage.RESIDUAL, 0.04), (Stage.DECODE, 0.008)):
        measured.observe(stage, 1, alone_s)
        measured.observe(stage, 4, 2 * alone_s)
    assert measured.work_s(PATTERN) == pytest.approx(10 * 0.01 + 3 * 0.02 + 0.004)
    assert measured.work_s(StepPattern.of([1] * 5, [], [1])) == pytest.approx(5 * 0.01 + 0.004)


def test_the_lower_bound_is_the_shortest_time_ever_measured() -> None:
    measured = StepCosts((1, 4))
    for seconds in (0.03, 0.01, 0.05):
        measured.observe(Stage.BASE, 1, seconds)
        measured.observe(Stage.RESIDUAL, 4, 2 * seconds)
        measured.observe(Stage.DECODE, 1, seconds / 10)
    assert measured.least_s(PATTERN) == pytest.approx(5 * 0.01 + 2 * 0.02 + 0.001)
    assert 0.01 < measured.mean_s(Stage.BASE, 1) < 0.05


def test_costs_are_restored_from_plain_data() -> None:
    measured = StepCosts((1, 4), strict={Stage.BASE: (4,), Stage.DECODE: (1,)}, stages=(Stage.BASE, Stage.DECODE))
    for seconds in (0.03, 0.01):
        for stage in measured.stages:
            for bucket in measured.buckets[stage]:
                measured.observe(stage, bucket, seconds)
    restored = StepCosts.load(json.loads(json.dumps(measured.dump())), strict={Stage.BASE: (4,), Stage.DECODE: (1,)})
    assert list(restored) == list(measured)
    assert (restored.buckets, restored.stages) == (measured.buckets, measured.stages)
    assert restored.strict_cost() == measured.strict_cost()


def test_an_estimate_follows_the_nearest_measurement() -> None:
    """Validation measured everything twice too slow, say, because other work ran."""
    estimates = [StepCost(Stage.BASE, bucket, 0.02 * bucket, 0.0) for bucket in (1, 4, 8)]
    measured = StepCosts({Stage.BASE: (1, 4, 8)}, estimates, stages=(Stage.BASE,))
    assert measured.mean_s(Stage.BASE, 8) == 0.16
    measured.observe(Stage.BASE, 4, 0.04)
    assert measured.mean_s(Stage.BASE, 4) == 0.04
    assert measured.mean_s(Stage.BASE, 8) == pytest.approx(0.08)
    assert measured.shortest_s(Stage.BASE) == 0.04
