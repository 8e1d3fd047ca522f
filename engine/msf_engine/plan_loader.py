"""Loading of the plans that serve model versions."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from msf_engine.backends import Backend, BackendName, Precision, default_backends, get_backend
from msf_engine.errors import BackendUnavailable, PlanRejected
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_builder import PlanBuilder
from msf_engine.plan_cache import PlanCache, PlanRecord
from msf_engine.plan_validation import Validation, equal_buckets
from msf_engine.repository import ModelVersion
from msf_engine.revisions import NUMERICS_REVISION, network_fingerprint

logger = logging.getLogger(__name__)


def load_plans(
    version: ModelVersion,
    backend: Backend,
    plan_cache: PlanCache,
    buckets: Sequence[int] = (),
) -> ModelPlans:
    """Load every plan of a model version; build and validate those that are not in the cache.

    The default buckets are the backend's. Raises ModelRepositoryError for damaged weights, PlanError when a plan cannot
    be built, PlanRejected when one does not agree with the reference.
    """
    started_at = time.monotonic()
    plan_cache.remove_abandoned()
    builder = PlanBuilder(version, backend, plan_cache, buckets)
    plans, records = {}, {}
    stages = version.config.all_stages
    time_embeddings = builder.time_embeddings  # first: it verifies the version's files
    for num_ready, stage in enumerate(stages, 1):
        plans[stage], records[stage] = builder.obtain(builder.spec(stage))
        seconds_left = (time.monotonic() - started_at) / num_ready * (len(stages) - num_ready)
        estimate = f", about {seconds_left:.0f} s left" if seconds_left >= 1 else ""
        logger.info("plan %d of %d ready: %s of %s%s", num_ready, len(stages), stage, version, estimate)
    seconds = time.monotonic() - started_at
    logger.info("%s ready in %.1f s, %d plans built (%s)", version, seconds, builder.num_built, backend.fingerprint)
    return ModelPlans(
        version.config,
        {stage: builder.buckets(stage) for stage in stages},
        plans,
        {stage: _strict_buckets(record.validations) for stage, record in records.items()},
        {(stage, v.bucket): v.seconds for stage, record in records.items() for v in record.validations},
        _fingerprint(version, backend, list(records.values())),
        time_embeddings,
        backend.fingerprint,
        needs_warm_up=backend.needs_warm_up,
        num_loaded=len(stages) - builder.num_built,
        num_built=builder.num_built,
    )


def load_version(
    version: ModelVersion,
    backend: BackendName | None,
    precision: Precision | None,
    num_threads: int,
    plan_cache: PlanCache,
    buckets: Sequence[int] = (),
) -> tuple[Backend, ModelPlans]:
    """Load a version's plans with a backend instance of their own, as those of one may not be loaded while others run.

    Without a name, that is the first of the machine's defaults that can be loaded and whose plans of this version are
    accepted. Raises BackendUnavailable, and what `load_plans` raises.
    """
    names = default_backends() if backend is None else (backend,)
    for name in names:
        try:
            chosen = get_backend(name, precision, num_threads)
            return chosen, load_plans(version, chosen, plan_cache, buckets)
        except (BackendUnavailable, PlanRejected) as error:
            if name == names[-1]:
                raise
            logger.warning("backend %s cannot serve %s on this machine: %s", name, version, error)
    raise AssertionError("there is always a last backend")


def first_backend(backend: BackendName | None, precision: Precision | None, num_threads: int) -> Backend:
    """Return the backend that `load_version` tries first. Raises BackendUnavailable."""
    names = default_backends() if backend is None else (backend,)
    for name in names[:-1]:
        with suppress(BackendUnavailable):
            return get_backend(name, precision, num_threads)
    return get_backend(names[-1], precision, num_threads)


def compile_plans(version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = ()) -> None:
    """Fill the cache. Plans that cannot run on this machine are validated when they are loaded.

    Raises what `load_plans` raises.
    """
    if backend.runs_here:
        load_plans(version, backend, plan_cache, buckets)
        return
    builder = PlanBuilder(version, backend, plan_cache, buckets)
    for stage in version.config.all_stages:
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
