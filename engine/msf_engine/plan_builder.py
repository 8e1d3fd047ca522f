"""Plans of one model version, one at a time: taken from the cache or compiled, and validated before they serve."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from torch import nn

from msf_engine.backends import Backend
from msf_engine.errors import PlanError, PlanRejected
from msf_engine.model_plans import plan_kinds
from msf_engine.plan import Plan, PlanKind, PlanSpec, stage_inputs
from msf_engine.plan_cache import PlanCache, PlanRecord, StoredPlan
from msf_engine.plan_validation import (
    EagerReference,
    Validation,
    ValidationInputs,
    output_digest,
    validate,
    validation_inputs,
)
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from msf_engine.model import MsfModel

logger = logging.getLogger(__name__)


class PlanBuilder:
    """Builder of a version's plans with one backend. It reads the networks only when a plan needs them."""

    def __init__(self, version: ModelVersion, backend: Backend, plan_cache: PlanCache) -> None:
        self.version = version
        self.backend = backend
        self.cache = plan_cache
        self.num_built = 0
        self.time_embeddings = {stage: version.load_time_embedding(stage) for stage in (Stage.BASE, Stage.RESIDUAL)}
        self._inputs_by_stage: dict[Stage, ValidationInputs] = {}
        self._references: dict[PlanKind, EagerReference] = {}

    def specs(self, buckets: tuple[int, ...]) -> list[PlanSpec]:
        """Return the specs of all plans that the version needs."""
        config, digest = self.version.config, self.version.digest
        groups = [buckets] if self.backend.one_plan_for_all_buckets else [(bucket,) for bucket in buckets]
        return [
            PlanSpec(str(self.version), digest, stage, guided, group, stage_inputs(config, stage))
            for group in groups
            for stage, guided in plan_kinds(config)
        ]

    def obtain(self, spec: PlanSpec) -> tuple[Plan, PlanRecord]:
        """Return the cached plan if it still yields the outputs of its validation, else build it.

        Raises PlanError when it cannot be built, PlanRejected when it does not agree with the reference.
        """
        if (cached := self._from_cache(spec)) is not None:
            return cached
        with self.cache.building(spec, self.backend.fingerprint):
            if (cached := self._from_cache(spec)) is not None:  # another process has built it
                return cached
            stored = self.build(spec)
            return self._validated(spec, self._load(spec, stored.artefact), stored)

    def build(self, spec: PlanSpec) -> StoredPlan:
        """Compile a plan, without running it. Raises PlanError."""
        started_at = time.monotonic()
        artefact = self.backend.compile(spec, self._module(spec.kind))
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
            validations = stored.record.validations
            if not validations:  # built on a machine that could not run it
                return self._validated(spec, plan, stored)
            inputs = self._inputs(spec.stage)
            if all(v.output_digest in (None, output_digest(plan, inputs, v.bucket)) for v in validations):
                return plan, stored.record
            logger.warning("cached plan %s is built again: its outputs are not those of its validation", spec)
        self.cache.remove(spec, self.backend.fingerprint)
        return None

    def _load(self, spec: PlanSpec, artefact: bytes) -> Plan:
        return self.backend.load(spec, artefact, lambda: self._module(spec.kind))

    def _validated(self, spec: PlanSpec, plan: Plan, stored: StoredPlan) -> tuple[Plan, PlanRecord]:
        """Validate a plan and keep it, with its validations, in the cache. Raises PlanRejected."""
        try:
            validations = tuple(self._validate(spec, plan, bucket) for bucket in spec.buckets)
        except Exception as error:  # compilers that work at the first run raise errors of any kind
            raise PlanRejected(f"plan {spec} of {spec.model} is rejected: it fails to run: {error}") from error
        for validation in validations:
            if not validation.is_accepted:
                raise PlanRejected(
                    f"plan {spec} of {spec.model} is rejected: at bucket {validation.bucket} its error against eager "
                    f"float32 is {validation.error:.2g}; allowed: {validation.tolerance:.2g} "
                    f"({self.backend.fingerprint})"
                )
        record = replace(stored.record, validations=validations)
        self.cache.put(spec, StoredPlan(stored.artefact, record))
        return plan, record

    def _validate(self, spec: PlanSpec, plan: Plan, bucket: int) -> Validation:
        inputs, reference = self._inputs(spec.stage), self._reference(spec.kind)
        return validate(plan, inputs, reference, bucket, self.backend.tolerance(spec.stage), self.backend.device)

    def _inputs(self, stage: Stage) -> ValidationInputs:
        if stage not in self._inputs_by_stage:
            self._inputs_by_stage[stage] = validation_inputs(self.version.config, self.time_embeddings, stage)
        return self._inputs_by_stage[stage]

    def _reference(self, kind: PlanKind) -> EagerReference:
        if kind not in self._references:
            self._references[kind] = EagerReference.of(kind[0], self._module(kind), self._inputs(kind[0]))
        return self._references[kind]

    @cached_property
    def _model(self) -> MsfModel:
        logger.info("%s: loading the networks to build plans", self.version)
        return self.version.load()

    def _module(self, kind: PlanKind) -> nn.Module:
        from msf_engine.guided_step import StepModule
        from msf_engine.model import DecodeModule  # imports diffusers, which takes seconds; cached plans do without

        stage, guided = kind
        if stage is Stage.DECODE:
            return DecodeModule(self._model).eval()
        return StepModule(self._model.denoiser(stage), guided=guided).eval()
