"""Loading of the plans that serve model versions."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from msf_engine.backends import Backend, BackendName, Precision, default_backends, get_backend
from msf_engine.errors import BackendUnavailable, PlanRejected
from msf_engine.model_plans import ModelPlans, plan_kinds
from msf_engine.options import DEFAULT_BUCKETS
from msf_engine.plan import Plan, PlanKind
from msf_engine.plan_builder import PlanBuilder
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_validation import equal_buckets
from msf_engine.repository import ModelVersion
from msf_engine.revisions import NUMERICS_REVISION, network_fingerprint

logger = logging.getLogger(__name__)


def load_plans(
    version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = DEFAULT_BUCKETS
) -> ModelPlans:
    """Load every plan of a model version; build and validate those that are not in the cache.

    Raises ModelRepositoryError for damaged weights, PlanError when a plan cannot be built, PlanRejected when one does
    not agree with the reference.
    """
    started_at = time.monotonic()
    buckets = tuple(sorted(set(buckets)))
    builder = PlanBuilder(version, backend, plan_cache)
    kinds = plan_kinds(version.config)
    plans: dict[PlanKind, dict[int, Plan]] = {kind: {} for kind in kinds}
    row_digests: dict[PlanKind, dict[int, str | None]] = {kind: {} for kind in kinds}
    artefact_digests = []
    for spec in builder.specs(buckets):
        plan, record = builder.obtain(spec)
        plans[spec.kind].update(dict.fromkeys(spec.buckets, plan))
        row_digests[spec.kind].update({each.bucket: each.row_digest for each in record.validations})
        artefact_digests.append(record.sha256)
    num_plans = len(artefact_digests)
    logger.info(
        "%s: %d plans ready in %.1f s, %d of them built (%s)",
        version,
        num_plans,
        time.monotonic() - started_at,
        builder.num_built,
        backend.fingerprint,
    )
    return ModelPlans(
        version.config,
        buckets,
        plans,
        {kind: next(iter(equal_buckets(digests)), ()) for kind, digests in row_digests.items()},
        _fingerprint(version, backend, artefact_digests),
        builder.time_embeddings,
        num_loaded=num_plans - builder.num_built,
        num_built=builder.num_built,
    )


def load_models(
    versions: Sequence[ModelVersion],
    backend: BackendName | None,
    precision: Precision | None,
    num_threads: int,
    plan_cache: PlanCache,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
) -> tuple[Backend, list[ModelPlans]]:
    """Load the plans of model versions with one backend.

    Without a name, that is the first of the machine's defaults that can be loaded and whose plans are accepted. Raises
    BackendUnavailable, and what `load_plans` raises.
    """
    names = default_backends() if backend is None else (backend,)
    for name in names:
        try:
            chosen = get_backend(name, precision, num_threads)
            return chosen, [load_plans(version, chosen, plan_cache, buckets) for version in versions]
        except (BackendUnavailable, PlanRejected) as error:
            if name == names[-1]:
                raise
            logger.warning("backend %s cannot serve on this machine: %s", name, error)
    raise AssertionError("there is always a last backend")


def compile_plans(
    version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = DEFAULT_BUCKETS
) -> None:
    """Fill the cache. Plans that cannot run on this machine are validated when they are loaded.

    Raises what `load_plans` raises.
    """
    if backend.runs_here:
        load_plans(version, backend, plan_cache, buckets)
        return
    builder = PlanBuilder(version, backend, plan_cache)
    for spec in builder.specs(tuple(sorted(set(buckets)))):
        if plan_cache.get(spec, backend.fingerprint) is None:
            plan_cache.put(spec, builder.build(spec))


def _fingerprint(version: ModelVersion, backend: Backend, artefact_digests: Sequence[str]) -> str:
    """SHA-256 of everything that decides the bytes of an image."""
    libraries = f"numpy {np.__version__} torch {torch.__version__} {torch.get_num_threads()} threads"
    host = f"numerics {NUMERICS_REVISION} {libraries}"
    parts = (version.digest, backend.fingerprint, network_fingerprint(), host, *artefact_digests)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
