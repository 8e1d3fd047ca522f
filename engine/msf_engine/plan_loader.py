"""Loading of the plans that serve model versions."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from msf_engine.backends import Backend, BackendName, Precision, default_backends, get_backend
from msf_engine.errors import BackendUnavailable, PlanRejected
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_builder import PlanBuilder
from msf_engine.plan_cache import PlanCache, PlanRecord
from msf_engine.plan_validation import Validation, equal_buckets
from msf_engine.repository import ModelVersion
from msf_engine.revisions import NUMERICS_REVISION, network_fingerprint
from msf_scheduler.stage import Stage

logger = logging.getLogger(__name__)


@dataclass
class LoadProgress:
    """Log of plans that become ready, of `num_plans` in all."""

    num_plans: int
    num_ready: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def add(self, version: ModelVersion, stage: Stage) -> None:
        """Log one more plan, and the time that the others will take if they take as long."""
        self.num_ready += 1
        num_left = self.num_plans - self.num_ready
        seconds_left = (time.monotonic() - self.started_at) / self.num_ready * num_left
        estimate = f", about {seconds_left:.0f} s left" if seconds_left >= 1 else ""
        logger.info("plan %d of %d ready: %s of %s%s", self.num_ready, self.num_plans, stage, version, estimate)


def load_plans(
    version: ModelVersion,
    backend: Backend,
    plan_cache: PlanCache,
    buckets: Sequence[int] = (),
    progress: LoadProgress | None = None,
) -> ModelPlans:
    """Load every plan of a model version; build and validate those that are not in the cache.

    The default buckets are the backend's. Raises ModelRepositoryError for damaged weights, PlanError when a plan cannot
    be built, PlanRejected when one does not agree with the reference.
    """
    started_at = time.monotonic()
    builder = PlanBuilder(version, backend, plan_cache, buckets)
    plans, records = {}, {}
    progress = progress or LoadProgress(len(Stage))
    for stage in Stage:
        plans[stage], records[stage] = builder.obtain(builder.spec(stage))
        progress.add(version, stage)
    seconds = time.monotonic() - started_at
    logger.info("%s ready in %.1f s, %d plans built (%s)", version, seconds, builder.num_built, backend.fingerprint)
    return ModelPlans(
        version.config,
        {stage: builder.buckets(stage) for stage in Stage},
        plans,
        {stage: _strict_buckets(record.validations) for stage, record in records.items()},
        {(stage, v.bucket): v.seconds for stage, record in records.items() for v in record.validations},
        _fingerprint(version, backend, list(records.values())),
        builder.time_embeddings,
        num_loaded=len(Stage) - builder.num_built,
        num_built=builder.num_built,
    )


def load_models(
    versions: Sequence[ModelVersion],
    backend: BackendName | None,
    precision: Precision | None,
    num_threads: int,
    plan_cache: PlanCache,
    buckets: Sequence[int] = (),
) -> tuple[Backend, list[ModelPlans]]:
    """Load the plans of model versions with one backend.

    Without a name, that is the first of the machine's defaults that can be loaded and whose plans are accepted. Raises
    BackendUnavailable, and what `load_plans` raises.
    """
    names = default_backends() if backend is None else (backend,)
    for name in names:
        try:
            chosen = get_backend(name, precision, num_threads)
            progress = LoadProgress(len(Stage) * len(versions))
            return chosen, [load_plans(version, chosen, plan_cache, buckets, progress) for version in versions]
        except (BackendUnavailable, PlanRejected) as error:
            if name == names[-1]:
                raise
            logger.warning("backend %s cannot serve on this machine: %s", name, error)
    raise AssertionError("there is always a last backend")


def compile_plans(version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = ()) -> None:
    """Fill the cache. Plans that cannot run on this machine are validated when they are loaded.

    Raises what `load_plans` raises.
    """
    if backend.runs_here:
        load_plans(version, backend, plan_cache, buckets)
        return
    builder = PlanBuilder(version, backend, plan_cache, buckets)
    for stage in Stage:
        builder.build(builder.spec(stage))


def _strict_buckets(validations: Sequence[Validation]) -> tuple[int, ...]:
    return next(iter(equal_buckets({each.bucket: each.row_digest for each in validations})), ())


def _strict_rows(validations: Sequence[Validation]) -> str:
    """Return the digest of the rows in strict buckets: other buckets may give other bytes."""
    buckets = _strict_buckets(validations)
    return next((each.row_digest for each in validations if each.row_digest and each.bucket in buckets), "none")


def _fingerprint(version: ModelVersion, backend: Backend, records: Sequence[PlanRecord]) -> str:
    """SHA-256 of everything that decides the bytes of a strict image."""
    host = f"numerics {NUMERICS_REVISION} numpy {np.__version__}"
    plans = (f"{record.sha256} {_strict_rows(record.validations)}" for record in records)
    parts = (version.digest, backend.fingerprint, network_fingerprint(), host, *plans)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
