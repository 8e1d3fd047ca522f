"""Validation detects plans that are wrong and rows that depend on their batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from msf_engine.denoiser_config import TimeConfig
from msf_engine.plan import Array, FunctionPlan, Plan, PlanSpec, stage_inputs
from msf_engine.plan_validation import (
    FULL,
    NUM_SAMPLES,
    SHORT,
    EagerReference,
    ValidationInputs,
    equal_buckets,
    make_validation_inputs,
    sweep,
    validate,
)
from msf_engine.repository import ModelVersion
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

SPEC = PlanSpec("sum:1", "", Stage.DECODE, (1, 2, 4, 8), (((2, 2, 2), "float32"), ((6, 2, 2), "float32")))


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, base: Tensor, residual: Tensor) -> Tensor:
        return (self.scale * base.sum((1, 2, 3)) + residual.sum((1, 2, 3)))[:, None]


@pytest.fixture
def inputs() -> ValidationInputs:
    return make_validation_inputs(SPEC.inputs)


def right(base: Array, residual: Array) -> Array:
    rows: Tensor = Sum()(torch.from_numpy(base), torch.from_numpy(residual))
    return rows.numpy()


def plan(change: Callable[[Array], Array] = lambda rows: rows) -> Plan:
    """Return a plan that computes the sum and changes its rows."""
    return FunctionPlan(SPEC, lambda *inputs: change(right(*inputs)))


def slot_dependent(rows: Array) -> Array:
    return np.concatenate((rows[:-1], np.nextafter(rows[-1:], np.float32(np.inf))))


def neighbour_dependent(rows: Array) -> Array:
    return np.asarray(rows + np.float32(1e-3) * np.nan_to_num(rows).mean()) if len(rows) > 1 else rows


def poisoned_by_nan(rows: Array) -> Array:
    return np.asarray(rows + 0 * rows.sum())


def poisoned_by_huge(rows: Array) -> Array:
    return np.asarray(rows + np.maximum(np.abs(rows).max(), 1e4) * np.float32(1e-3))


def test_independent_rows_are_equal_in_every_bucket(inputs: ValidationInputs) -> None:
    digests = {bucket: sweep(plan(), inputs, bucket, FULL, repeats=2).row_digest for bucket in (1, 2, 5, 8)}
    assert None not in digests.values()
    assert equal_buckets(digests) == [(1, 2, 5, 8)]


@pytest.mark.parametrize("dependent", [slot_dependent, neighbour_dependent, poisoned_by_nan])
def test_rows_that_depend_on_their_batch_are_detected(
    inputs: ValidationInputs, dependent: Callable[[Array], Array]
) -> None:
    assert sweep(plan(dependent), inputs, 4, SHORT).row_digest is None


def test_rows_that_depend_on_the_size_of_their_batch_split_the_buckets(inputs: ValidationInputs) -> None:
    """Each bucket is consistent on its own, but only the smaller ones agree."""
    by_size = plan(lambda rows: rows * np.float32(1 + 1e-6) if len(rows) > 4 else rows)
    digests = {bucket: sweep(by_size, inputs, bucket, SHORT).row_digest for bucket in (1, 2, 4, 8)}
    assert equal_buckets(digests) == [(1, 2, 4), (8,)]


def test_the_full_sweep_detects_influence_of_huge_values(inputs: ValidationInputs) -> None:
    assert sweep(plan(poisoned_by_huge), inputs, 4, FULL).row_digest is None


def test_repeats_detect_a_plan_that_is_not_deterministic(inputs: ValidationInputs) -> None:
    calls = iter(range(10_000))
    unstable = plan(lambda rows: rows + np.float32(next(calls) == 700))
    assert sweep(unstable, inputs, 2, SHORT, repeats=50).row_digest is None


def test_the_largest_group_of_equal_buckets_comes_first() -> None:
    assert equal_buckets({1: "a", 2: "b", 4: "b", 8: None}) == [(2, 4), (1,)]
    assert equal_buckets({1: "a", 2: "b"}) == [(2,), (1,)]
    assert equal_buckets({1: None}) == []


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize(
    ("wrong", "error"), [(lambda rows: rows + 3, 3.0), (lambda rows: rows * np.float32(np.nan), float("inf"))]
)
def test_the_error_is_that_of_the_worst_row(
    inputs: ValidationInputs, bucket: int, wrong: Callable[[Array], Array], error: float
) -> None:
    reference = EagerReference.of(Stage.DECODE, Sum(), inputs)
    accepted = validate(plan(), inputs, reference, bucket, 1.0, "this CPU")
    assert accepted.is_accepted
    assert accepted.bucket == bucket
    assert accepted.row_digest is not None
    rejected = validate(plan(wrong), inputs, reference, bucket, 1.0, "this CPU")
    assert rejected.error == pytest.approx(error)
    assert not rejected.is_accepted


def test_an_error_of_one_row_alone_counts(inputs: ValidationInputs) -> None:
    def last_is_wrong(rows: Array) -> Array:
        return np.concatenate((rows[:-1], rows[-1:] + 3))

    reference = EagerReference.of(Stage.DECODE, Sum(), inputs)
    assert validate(plan(last_is_wrong), inputs, reference, 4, 1.0, "this CPU").error == pytest.approx(3)


def test_a_plan_whose_rows_depend_on_their_neighbours_is_accepted_without_a_row_digest(
    inputs: ValidationInputs,
) -> None:
    """It may serve fast images; no strict one."""
    reference = EagerReference.of(Stage.DECODE, Sum(), inputs)
    validation = validate(plan(neighbour_dependent), inputs, reference, 4, 1.0, "this CPU")
    assert validation.is_accepted
    assert validation.row_digest is None
    assert validation.output_digest is not None  # the same batch gives the same bytes


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])
def test_a_denoiser_is_validated_at_several_times_and_labels(version: ModelVersion, stage: Stage) -> None:
    embed = HostTimeEmbedding.of(version.read_time_embeddings()[stage], TimeConfig())
    inputs = stage_inputs(version.config, stage)
    arrays = make_validation_inputs(inputs, version.config.num_classes, embed).arrays
    assert [(array.shape[1:], str(array.dtype)) for array in arrays] == list(inputs)
    assert {len(array) for array in arrays} == {NUM_SAMPLES}
    _, embedding, labels, *_ = arrays
    assert len(np.unique(embedding, axis=0)) == NUM_SAMPLES
    assert version.config.num_classes in labels  # the null label
    assert labels.max() <= version.config.num_classes
