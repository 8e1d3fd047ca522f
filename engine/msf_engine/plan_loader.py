"""From a model version to the plans that serve it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from msf_engine.backends import Backend, BackendName, Precision, default_backends, get_backend
from msf_engine.config import ModelConfig
from msf_engine.denoiser import TimeEmbedding
from msf_engine.errors import BackendUnavailable, PlanError, PlanRejected
from msf_engine.model_plans import ModelPlans, PlanKind, plan_kinds
from msf_engine.options import DEFAULT_BUCKETS
from msf_engine.plan import Input, Plan, PlanSpec, decode_inputs, step_inputs
from msf_engine.plan_cache import PlanCache, PlanRecord, StoredPlan, source_digest
from msf_engine.plan_validation import Probes, Reference, Trial, answer, make_probes, strict_sets, trial
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.model import MsfModel

logger = logging.getLogger(__name__)

_RUN_BY = ("executor.py", "sampling.py", "noise.py", "schedule.py", "plan_loader.py")


def load_plans(
    version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = DEFAULT_BUCKETS
) -> ModelPlans:
    """Load every plan of a model version; compile and try what is not in the cache, or not as it was.

    Raises ModelRepositoryError for damaged weights, PlanError where a plan cannot be built, PlanRejected where one
    does not agree with the reference.
    """
    started_at = time.monotonic()
    buckets = tuple(sorted(set(buckets)))
    workshop = _Workshop(version, backend, plan_cache)
    kinds = plan_kinds(version.config)
    plans: dict[PlanKind, dict[int, Plan]] = {kind: {} for kind in kinds}
    trials: dict[PlanKind, list[Trial]] = {kind: [] for kind in kinds}
    digests = []
    for spec in workshop.specs(buckets):
        plan, record = workshop.obtain(spec)
        plans[spec.stage, spec.guided].update(dict.fromkeys(spec.buckets, plan))
        trials[spec.stage, spec.guided] += record.trials
        digests.append(record.sha256)
    logger.info(
        "%s: %d plans %s in %.1f s (%s)",
        version,
        len(digests),
        f"loaded, {workshop.num_built} of them built," if workshop.num_built else "loaded",
        time.monotonic() - started_at,
        backend.fingerprint,
    )
    host = f"numpy {np.__version__} torch {torch.__version__} {torch.get_num_threads()} threads"
    whole = (version.digest, backend.fingerprint, host, source_digest(_RUN_BY), *digests)
    return ModelPlans(
        version.config,
        buckets,
        plans,
        {kind: _strict_buckets(each) for kind, each in trials.items()},
        hashlib.sha256("\n".join(whole).encode()).hexdigest(),
        workshop.time_embeddings,
        num_loaded=len(digests) - workshop.num_built,
        num_built=workshop.num_built,
    )


def load_models(
    versions: Sequence[ModelVersion],
    backend: BackendName | None,
    precision: Precision | None,
    num_threads: int,
    plan_cache: PlanCache,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
) -> tuple[Backend, list[ModelPlans]]:
    """The plans of several model versions by one backend: by the one named, else by the first of the machine's defaults
    that can be loaded and whose plans are accepted.

    Raises BackendUnavailable and as `load_plans` does.
    """
    names = default_backends() if backend is None else (backend,)
    for name in names:
        try:
            chosen = get_backend(name, precision, num_threads)
            return chosen, [load_plans(version, chosen, plan_cache, buckets) for version in versions]
        except (BackendUnavailable, PlanRejected) as error:
            if name == names[-1]:
                raise
            logger.warning("backend %s cannot serve here: %s", name, error)
    raise AssertionError("there is always a last backend")


def _strict_buckets(trials: Sequence[Trial]) -> tuple[int, ...]:
    return next(iter(strict_sets({each.bucket: each.row for each in trials})), ())


def probes_of(config: ModelConfig, time_embeddings: Mapping[Stage, TimeEmbedding], stage: Stage) -> Probes:
    """What plans of a stage are tried with."""
    embedding = time_embeddings.get(stage, time_embeddings[Stage.BASE])
    return make_probes(stage, _inputs(config, stage), config.num_classes, embedding)


def _inputs(config: ModelConfig, stage: Stage) -> tuple[Input, ...]:
    return decode_inputs(config) if stage is Stage.DECODE else step_inputs(config.stage(stage).denoiser)


def compile_plans(
    version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = DEFAULT_BUCKETS
) -> None:
    """Fill the cache, also where the plans cannot run: they are tried when they are loaded. Raises as `load_plans`."""
    if backend.runs_here:
        load_plans(version, backend, plan_cache, buckets)
        return
    workshop = _Workshop(version, backend, plan_cache)
    for spec in workshop.specs(tuple(sorted(set(buckets)))):
        if plan_cache.get(spec, backend.fingerprint) is None:
            plan_cache.put(spec, workshop.build(spec))


class _Workshop:
    """Where a version's plans are loaded, built and tried. The networks are read when one must be built, not before."""

    def __init__(self, version: ModelVersion, backend: Backend, plan_cache: PlanCache) -> None:
        self.version = version
        self.backend = backend
        self.cache = plan_cache
        self.num_built = 0
        self.time_embeddings = {stage: version.load_time_embedding(stage) for stage in (Stage.BASE, Stage.RESIDUAL)}
        self._probes: dict[Stage, Probes] = {}
        self._references: dict[tuple[Stage, bool], Reference] = {}

    @cached_property
    def model(self) -> MsfModel:
        logger.info("%s: loading the networks to make plans of them", self.version)
        return self.version.load()

    def specs(self, buckets: tuple[int, ...]) -> list[PlanSpec]:
        config, digest = self.version.config, self.version.digest
        groups = [buckets] if self.backend.one_plan_for_all_buckets else [(bucket,) for bucket in buckets]
        return [
            PlanSpec(str(self.version), digest, stage, guided, group, _inputs(config, stage))
            for group in groups
            for stage, guided in plan_kinds(config)
        ]

    def obtain(self, spec: PlanSpec) -> tuple[Plan, PlanRecord]:
        """From the cache if what is there still answers as when it was tried, else anew."""
        found = self._from_cache(spec)
        if found is not None:
            return found
        with self.cache.building(spec, self.backend.fingerprint):
            found = self._from_cache(spec)  # another process may have built it meanwhile
            if found is not None:
                return found
            stored = self.build(spec)
            plan = self._load(spec, stored.artefact)
            record = self._try(spec, plan, stored.record)
            self.cache.put(spec, StoredPlan(stored.artefact, record))
            return plan, record

    def build(self, spec: PlanSpec) -> StoredPlan:
        started_at = time.monotonic()
        artefact = self.backend.compile(spec, self._source(spec)())
        seconds = time.monotonic() - started_at
        self.num_built += 1
        logger.info("compiled plan %s in %.1f s (%.1f MB)", spec, seconds, len(artefact) / 1e6)
        record = PlanRecord(
            model=spec.model,
            plan=str(spec),
            backend=self.backend.name,
            precision=self.backend.precision,
            fingerprint=self.backend.fingerprint,
            size_bytes=len(artefact),
            sha256=hashlib.sha256(artefact).hexdigest(),
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            build_s=round(seconds, 3),
        )
        return StoredPlan(artefact, record)

    def _from_cache(self, spec: PlanSpec) -> tuple[Plan, PlanRecord] | None:
        stored = self.cache.get(spec, self.backend.fingerprint)
        if stored is None:
            return None
        try:
            plan = self._load(spec, stored.artefact)
        except PlanError as error:
            logger.warning("cached plan %s is built again: %s", spec, error)
        else:
            if not stored.record.trials:  # built where it could not run
                record = self._try(spec, plan, stored.record)
                self.cache.put(spec, StoredPlan(stored.artefact, record))
                return plan, record
            probes = self._probes_of(spec)
            if all(t.answer in (None, answer(plan, probes, t.bucket)) for t in stored.record.trials):
                return plan, stored.record
            logger.warning("cached plan %s is built again: it does not answer as when it was accepted", spec)
        self.cache.remove(spec, self.backend.fingerprint)
        return None

    def _load(self, spec: PlanSpec, artefact: bytes) -> Plan:
        return self.backend.load(spec, artefact, self._source(spec))

    def _try(self, spec: PlanSpec, plan: Plan, record: PlanRecord) -> PlanRecord:
        kind = spec.stage, spec.guided
        probes = self._probes_of(spec)
        if kind not in self._references:
            self._references[kind] = Reference.of(spec.stage, self._source(spec)(), probes)
        try:
            trials = tuple(
                trial(
                    plan,
                    probes,
                    self._references[kind],
                    bucket,
                    tolerance=self.backend.tolerance(spec.stage),
                    verified_on=self.backend.device,
                    verified_at=datetime.now(UTC).date().isoformat(),
                )
                for bucket in spec.buckets
            )
        except Exception as error:  # whatever a compiler that works at the first run raises
            raise PlanRejected(f"plan {spec} of {spec.model} is refused: it fails to run: {error}") from error
        for each in trials:
            if not each.is_accepted:
                raise PlanRejected(
                    f"plan {spec} of {spec.model} is refused: at bucket {each.bucket} its error against eager float32 "
                    f"is {each.error:.2g}, allowed: {each.tolerance:.2g} ({self.backend.fingerprint})"
                )
        return replace(record, trials=trials)

    def _probes_of(self, spec: PlanSpec) -> Probes:
        if spec.stage not in self._probes:
            self._probes[spec.stage] = probes_of(self.version.config, self.time_embeddings, spec.stage)
        return self._probes[spec.stage]

    def _source(self, spec: PlanSpec) -> Callable[[], nn.Module]:
        return self._decode if spec.stage is Stage.DECODE else partial(self._step, spec.stage, spec.guided)

    def _step(self, stage: Stage, guided: bool) -> nn.Module:
        from msf_engine.guided_step import StepModule

        return StepModule(self.model.denoiser(stage), guided=guided).eval()

    def _decode(self) -> nn.Module:
        from msf_engine.model import DecodeModule

        return DecodeModule(self.model).eval()
