"""Validation detects plans that are wrong and rows that depend on their batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from msf_engine.plan import Plan
from msf_engine.plan_validation import (
    FULL,
    SHORT,
    EagerReference,
    Validation,
    ValidationInputs,
    equal_buckets,
    make_validation_inputs,
    sweep,
    validate,
)
from msf_scheduler.stage import Stage

INPUTS = (((2, 2, 2), "float32"), ((6, 2, 2), "float32"))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return (self.scale * base.sum((1, 2, 3)) + residual.sum((1, 2, 3)))[:, None]


@pytest.fixture
def inputs() -> ValidationInputs:
    return make_validation_inputs(Stage.DECODE, INPUTS, 3, lambda times, levels: times[:, None])  # type: ignore[arg-type]


def plan(*tensors: Tensor) -> tuple[Tensor, ...]:
    return (Sum()(*tensors),)


def slot_dependent(*tensors: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*tensors)
    return (torch.cat((rows[:-1], rows[-1:].nextafter(torch.tensor(torch.inf)))),)


def neighbour_dependent(*tensors: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*tensors)
    return (rows + 1e-3 * rows.nan_to_num().mean() if len(rows) > 1 else rows,)


def poisoned_by_nan(*tensors: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*tensors)
    return (rows + 0 * rows.sum(),)


def poisoned_by_huge(*tensors: Tensor) -> tuple[Tensor, ...]:
    (rows,) = plan(*tensors)
    return (rows + rows.abs().max().clamp_min(1e4) * 1e-3,)


def test_independent_rows_are_equal_in_every_bucket(inputs: ValidationInputs) -> None:
    digests = {bucket: sweep(plan, inputs, bucket, FULL, 2) for bucket in (1, 2, 5, 8)}
    assert None not in digests.values()
    assert equal_buckets(digests) == [(1, 2, 5, 8)]


@pytest.mark.parametrize("dependent", [slot_dependent, neighbour_dependent, poisoned_by_nan])
def test_rows_that_depend_on_their_batch_are_detected(inputs: ValidationInputs, dependent: Plan) -> None:
    assert sweep(dependent, inputs, 4, SHORT, 1) is None


def test_the_full_sweep_detects_influence_of_huge_values(inputs: ValidationInputs) -> None:
    assert sweep(poisoned_by_huge, inputs, 4, FULL, 1) is None


def test_repeats_detect_a_plan_that_is_not_deterministic(inputs: ValidationInputs) -> None:
    calls = iter(range(10_000))

    def unstable(*tensors: Tensor) -> tuple[Tensor, ...]:
        (rows,) = plan(*tensors)
        return (rows + (next(calls) == 700),)

    assert sweep(unstable, inputs, 2, SHORT, 50) is None


def test_the_largest_group_of_equal_buckets_comes_first() -> None:
    assert equal_buckets({1: "a", 2: "b", 4: "b", 8: None}) == [(2, 4), (1,)]
    assert equal_buckets({1: "a", 2: "b"}) == [(2,), (1,)]
    assert equal_buckets({1: None}) == []


@pytest.mark.parametrize(
    ("wrong", "error"), [(lambda *i: (plan(*i)[0] + 3,), 3.0), (lambda *i: (plan(*i)[0] * torch.nan,), float("inf"))]
)
def test_the_error_is_that_of_the_worst_row(inputs: ValidationInputs, wrong: Plan, error: float) -> None:
    reference = EagerReference.of(Stage.DECODE, Sum(), inputs)

    def validated(candidate: Plan, bucket: int) -> Validation:
        return validate(candidate, inputs, reference, bucket, 1.0, "this CPU")

    for bucket in (1, 4):
        assert validated(plan, bucket).is_accepted
        validation = validated(wrong, bucket)
        assert validation.error == pytest.approx(error)
        assert not validation.is_accepted
