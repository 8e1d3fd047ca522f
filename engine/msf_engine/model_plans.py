"""All plans of one model version, ready to run, and a plan for any number of rows over those of fixed sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_engine.config import ModelConfig
from msf_engine.denoiser import TimeEmbedding
from msf_engine.errors import PlanError
from msf_engine.plan import Plan, PlanKind
from msf_scheduler.stage import Stage


@dataclass(frozen=True)
class BucketedPlan:
    """Plan for any number of rows: split at the largest bucket, the rest padded to the smallest that holds it."""

    buckets: Mapping[int, Plan]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        parts = zip(*(torch.split(tensor, max(self.buckets)) for tensor in inputs), strict=True)
        outputs = [self._run(part) for part in parts]
        return tuple(torch.cat(rows) for rows in zip(*outputs, strict=True))

    def _run(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        count = len(inputs[0])
        bucket = smallest_bucket(self.buckets, count)
        return [output[:count] for output in self.buckets[bucket](*(_padded(tensor, bucket) for tensor in inputs))]


@dataclass(frozen=True)
class ModelPlans:
    """A model version ready to run: the plans of each kind by bucket, and what the host computes itself.

    `strict` are the buckets of a kind in which a sample's bytes do not depend on its batch. `fingerprint` is the
    SHA-256 of everything that they depend on. `num_loaded` plans came from the cache, `num_built` were not in it.
    """

    config: ModelConfig
    buckets: tuple[int, ...]
    by_kind: Mapping[PlanKind, Mapping[int, Plan]]
    strict: Mapping[PlanKind, tuple[int, ...]]
    fingerprint: str
    time_embeddings: Mapping[Stage, TimeEmbedding]
    num_loaded: int = 0
    num_built: int = 0

    def bucketed(self, kind: PlanKind, *, strict: bool = False) -> BucketedPlan:
        """Return a plan for any number of rows. Raises PlanError when `strict` and no bucket of the kind is."""
        plans = self.by_kind[kind]
        if not strict:
            return BucketedPlan(plans)
        if not self.strict[kind]:
            raise PlanError(
                f"no strict images: a sample's bytes in stage {kind[0]} depend on its batch at every bucket"
            )
        return BucketedPlan({bucket: plans[bucket] for bucket in self.strict[kind]})


def plan_kinds(config: ModelConfig) -> tuple[PlanKind, ...]:
    """Return the kinds of plan that a model needs; guided ones only of stages that its config guides."""
    denoising = [
        (stage, guided)
        for stage in (Stage.BASE, Stage.RESIDUAL)
        for guided in (True, False)
        if not guided or config.stage(stage).guidance.interval is not None
    ]
    return (*denoising, (Stage.DECODE, False))


def smallest_bucket(buckets: Mapping[int, Plan] | tuple[int, ...], count: int) -> int:
    """Return the smallest bucket that holds `count` rows."""
    return min(bucket for bucket in buckets if bucket >= count)


def _padded(rows: Tensor, bucket: int) -> Tensor:
    """Fill the bucket with copies of the first row: padding must be as harmless as a sample."""
    return torch.cat((rows, rows[:1].expand(bucket - len(rows), *rows.shape[1:])))
