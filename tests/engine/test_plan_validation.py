"""What trials must notice: plans that are wrong, and rows that depend on their batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from msf_engine.plan import Plan
from msf_engine.plan_validation import FULL, SHORT, Probes, Reference, make_probes, strict_sets, sweep, trial
from msf_scheduler.stage import Stage

INPUTS = (((2, 2, 2), "float32"), ((6, 2, 2), "float32"))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return (self.scale * base.sum((1, 2, 3)) + residual.sum((1, 2, 3)))[:, None]


@pytest.fixture
def probes() -> Probes:
    return make_probes(Stage.DECODE, INPUTS, 3, lambda times, levels: times[:, None])  # type: ignore[arg-type]


def plan(*inputs: Tensor) -> tuple[Tensor, ...]:
    return (Sum()(*inputs),)


def slot_dependent(*inputs: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*inputs)
    return (torch.cat((rows[:-1], rows[-1:].nextafter(torch.tensor(torch.inf)))),)


def neighbour_dependent(*inputs: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*inputs)
    return (rows + 1e-3 * rows.nan_to_num().mean() if len(rows) > 1 else rows,)


def poisoned_by_nan(*inputs: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*inputs)
    return (rows + 0 * rows.sum(),)


def poisoned_by_huge(*inputs: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*inputs)
    return (rows + rows.abs().max().clamp_min(1e4) * 1e-3,)


def test_rows_that_stand_for_themselves_are_alike_in_every_bucket(probes: Probes) -> None:
    rows = {bucket: sweep(plan, probes, bucket, FULL, 2) for bucket in (1, 2, 5, 8)}
    assert None not in rows.values()
    assert strict_sets(rows) == [(1, 2, 5, 8)]


@pytest.mark.parametrize("odd", [slot_dependent, neighbour_dependent, poisoned_by_nan])
def test_rows_that_depend_on_their_batch_are_found_at_once(probes: Probes, odd: Plan) -> None:
    assert sweep(odd, probes, 4, SHORT, 1) is None


def test_the_full_form_tries_more(probes: Probes) -> None:
    assert sweep(poisoned_by_huge, probes, 4, FULL, 1) is None


def test_a_plan_that_wavers_is_found_by_repeating(probes: Probes) -> None:
    calls = iter(range(10_000))

    def wavering(*inputs: Tensor) -> tuple[Tensor, ...]:
        (rows,) = plan(*inputs)
        return (rows + (next(calls) == 700),)

    assert sweep(wavering, probes, 2, SHORT, 50) is None


def test_of_the_sets_of_like_buckets_the_largest_comes_first() -> None:
    assert strict_sets({1: "a", 2: "b", 4: "b", 8: None}) == [(2, 4), (1,)]
    assert strict_sets({1: "a", 2: "b"}) == [(2,), (1,)]
    assert strict_sets({1: None}) == []


@pytest.mark.parametrize(
    ("wrong", "error"), [(lambda *i: (plan(*i)[0] + 3,), 3.0), (lambda *i: (plan(*i)[0] * torch.nan,), float("inf"))]
)
def test_an_error_is_that_of_the_worst_row(probes: Probes, wrong: Plan, error: float) -> None:
    reference = Reference.of(Stage.DECODE, Sum(), probes)
    told = {"tolerance": 1.0, "verified_on": "here", "verified_at": "today"}
    for bucket in (1, 4):
        assert trial(plan, probes, reference, bucket, **told).is_accepted  # type: ignore[arg-type]
        found = trial(wrong, probes, reference, bucket, **told)  # type: ignore[arg-type]
        assert found.error == pytest.approx(error)
        assert not found.is_accepted
