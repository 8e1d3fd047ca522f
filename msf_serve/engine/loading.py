"""From a model version to the plans that serve it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from torch import nn

from msf_serve.engine.backends import Backend, Plan
from msf_serve.engine.config import ModelConfig, Stage
from msf_serve.engine.denoiser import TimeEmbedding
from msf_serve.engine.plans import PlanCache, decode_spec, step_spec
from msf_serve.engine.repository import ModelVersion

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from msf_serve.engine.model import MsfModel

DEFAULT_BUCKETS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class ModelPlans:
    """A model version ready to run: a plan for each (stage, guided, bucket), and what the host computes itself."""

    config: ModelConfig
    buckets: tuple[int, ...]
    steps: dict[tuple[Stage, bool, int], Plan]
    decode: dict[int, Plan]
    time_embeddings: dict[Stage, TimeEmbedding]

    def bucket_for(self, count: int) -> int:
        """The smallest bucket that holds `count` samples."""
        return next(bucket for bucket in self.buckets if bucket >= count)


def load_plans(
    version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = DEFAULT_BUCKETS
) -> ModelPlans:
    """Load or compile every plan of a model version.

    Raises ModelRepositoryError for damaged weights, PlanError where a plan cannot be built.
    """
    started_at = time.monotonic()
    config, digest = version.config, version.digest
    time_embeddings = {stage: version.load_time_embedding(stage) for stage in (Stage.BASE, Stage.RESIDUAL)}

    networks = _Networks(version)
    steps = {}
    decode = {}
    for bucket in sorted(buckets):
        for stage in (Stage.BASE, Stage.RESIDUAL):
            for guided in (True, False):
                spec = step_spec(config, digest, stage, guided=guided, bucket=bucket)
                steps[stage, guided, bucket] = backend.plan(spec, partial(networks.step, stage, guided), plan_cache)
        decode[bucket] = backend.plan(decode_spec(config, digest, bucket=bucket), networks.decode, plan_cache)
    built = "compiled" if networks.loaded else "loaded"
    logger.info(
        "%s %s: %d plans %s in %.1f s (%s)",
        version.name,
        version.version,
        len(steps) + len(decode),
        built,
        time.monotonic() - started_at,
        backend.fingerprint,
    )
    return ModelPlans(config, tuple(sorted(buckets)), steps, decode, time_embeddings)


class _Networks:
    """The networks of a version, built when a plan must be compiled and not before (their import takes seconds)."""

    def __init__(self, version: ModelVersion) -> None:
        self.version = version

    @cached_property
    def model(self) -> MsfModel:
        logger.info("%s %s: loading the networks to make plans of them", self.version.name, self.version.version)
        return self.version.load()

    @property
    def loaded(self) -> bool:
        return "model" in self.__dict__

    def step(self, stage: Stage, guided: bool) -> nn.Module:
        from msf_serve.engine.model import StepModule

        return StepModule(self.model.denoiser(stage), guided=guided).eval()

    def decode(self) -> nn.Module:
        from msf_serve.engine.model import DecodeModule

        return DecodeModule(self.model).eval()
