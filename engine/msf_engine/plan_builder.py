"""Plans of one model version, one at a time: taken from the cache or compiled, and validated before they serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from msf_engine.backends import Backend
from msf_engine.errors import INSTALL, EngineError, ModelRepositoryError, PlanError, PlanRejected
from msf_engine.plan import Plan, PlanSpec, stage_inputs
from msf_engine.plan_cache import PlanCache, PlanRecord, StoredPlan, folder_digest
from msf_engine.plan_validation import (
    EagerReference,
    ValidationInputs,
    make_validation_inputs,
    output_digest,
    validate,
)
from msf_engine.repository import ModelVersion
from msf_engine.time_embedding import HostTimeEmbedding
from msf_scheduler.stage import Stage

if TYPE_CHECKING:
    from torch import nn

    from msf_engine.model import MsfModel

logger = logging.getLogger(__name__)

MAX_DECODE_BUCKET = 8
# Versions with the same network, in one process, share its plan and its weights.
_LOADED: WeakValueDictionary[tuple[str, str, Stage, tuple[int, ...]], Plan] = WeakValueDictionary()


class PlanBuilder:
    """Builder of a version's plans with one backend. It reads the weights only when a plan needs them."""

    def __init__(
        self, version: ModelVersion, backend: Backend, plan_cache: PlanCache, buckets: Sequence[int] = ()
    ) -> None:
        """Use the backend's buckets unless others are given."""
        self.version = version
        self._buckets = tuple(sorted(set(buckets or backend.buckets)))
        stages = version.config.stages
        if self._buckets[-1] < 2 and any(stage.guidance.interval is not None for stage in stages):
            raise PlanError(
                f"buckets {self._buckets} hold no guided step of {version}; allowed: at least one of 2 or more"
            )
        self.backend = backend
        self.cache = plan_cache
        self.num_built = 0
        self._references: dict[Stage, EagerReference] = {}

    @cached_property
    def time_embeddings(self) -> dict[Stage, HostTimeEmbedding]:
        """Time embeddings, computed on the host. Raises ModelRepositoryError for damaged weights of any network."""
        try:
            weights = self.version.read_time_embeddings()
            config = self.version.config
            return {stage: HostTimeEmbedding.of(weights[stage], config.stage(stage).denoiser.time) for stage in weights}
        except KeyError as error:
            raise ModelRepositoryError(
                f"{self.version.folder} does not hold this model's weights: no {error}"
            ) from error

    def is_cached(self) -> bool:
        """Return whether the cache has every plan, without reading it. Raises ModelRepositoryError."""
        return all(
            self.cache.has(self.spec(stage), self.backend.fingerprint) for stage in self.version.config.all_stages
        )

    def buckets(self, stage: Stage) -> tuple[int, ...]:
        """Return a stage's buckets: the decoder's are small, since one image already fills a device."""
        if stage is not Stage.DECODE:
            return self._buckets
        return tuple(bucket for bucket in self._buckets if bucket <= MAX_DECODE_BUCKET) or self._buckets[:1]

    def spec(self, stage: Stage) -> PlanSpec:
        """Return the spec of a stage's plan."""
        digest, inputs = self.version.network_digest(stage), stage_inputs(self.version.config, stage)
        return PlanSpec(str(self.version), digest, stage, self.buckets(stage), inputs)

    def obtain(self, spec: PlanSpec) -> tuple[Plan, PlanRecord]:
        """Return the cached plan if it still yields the output of its validation, else build it.

        Raises PlanError when it cannot be built, PlanRejected when it does not agree with the reference.
        """
        key = self.backend.fingerprint, spec.network_digest, spec.stage, spec.buckets
        plan, stored = _LOADED.get(key), self.cache.get(spec, self.backend.fingerprint)
        if plan is not None and stored is not None and stored.record.validations:
            return plan, stored.record
        obtained = self._from_cache(spec, stored)
        if obtained is None:
            stored = self.build(spec)
            obtained = self._validated(spec, self._load_new(spec, stored), stored)
        _LOADED[key], _ = obtained
        return obtained

    def build(self, spec: PlanSpec) -> StoredPlan:
        """Compile a plan, without running it, unless another process has just built it.

        Raises PlanRejected when that fails, ModelRepositoryError for weights with which nothing can be computed.
        """
        fingerprint = self.backend.fingerprint
        with self.cache.building(spec, fingerprint) as folder:
            if (stored := self.cache.get(spec, fingerprint)) is not None:
                return stored
            self._reference(spec)  # first: it takes much less time than compiling
            files = folder / "plan"
            files.mkdir()
            started_at = time.monotonic()
            try:
                self.backend.compile(spec, self._network(spec.stage), files)
            except EngineError:
                raise
            except Exception as error:  # of the compiler's own
                raise PlanRejected(f"plan {spec} is rejected: it cannot be compiled: {error}") from error
            seconds = time.monotonic() - started_at
            self.num_built += 1
            size_bytes = sum(file.stat().st_size for file in files.iterdir())
            logger.info("compiled plan %s in %.1f s (%.1f MB)", spec, seconds, size_bytes / 1e6)
            record = PlanRecord(
                model=spec.model,
                plan=str(spec.stage),
                backend=self.backend.name,
                precision=self.backend.precision,
                fingerprint=fingerprint,
                size_bytes=size_bytes,
                sha256=folder_digest(files),
                built_at=datetime.now(UTC).isoformat(timespec="seconds"),
                build_s=round(seconds, 3),
            )
            return self.cache.put(spec, record, files)

    def _from_cache(self, spec: PlanSpec, stored: StoredPlan | None) -> tuple[Plan, PlanRecord] | None:
        if stored is None:
            return None
        first = next(iter(stored.record.validations), None)  # one bucket tells another network or device apart
        try:
            plan = self._load(spec, stored)
            if first and first.output_digest not in (None, output_digest(plan, self._inputs(spec), first.bucket)):
                raise PlanError("its output is not that of its validation")
        except ModelRepositoryError:
            raise
        except Exception as error:  # runtimes raise errors of any kind
            logger.warning("cached plan %s is built again: %s", spec, error)
            self.cache.remove(spec, self.backend.fingerprint)
            return None
        if first is None:  # built on a machine that could not run it
            return self._validated(spec, plan, stored)
        return plan, stored.record

    def _load_new(self, spec: PlanSpec, stored: StoredPlan) -> Plan:
        try:
            return self._load(spec, stored)
        except EngineError:
            raise
        except Exception as error:
            raise PlanRejected(f"plan {spec} is rejected: it cannot be loaded: {error}") from error

    def _load(self, spec: PlanSpec, stored: StoredPlan) -> Plan:
        return self.backend.load(spec, stored.folder, lambda: self._network(spec.stage))

    def _validated(self, spec: PlanSpec, plan: Plan, stored: StoredPlan) -> tuple[Plan, PlanRecord]:
        """Validate a plan and keep the outcome in the cache. Raises PlanRejected, and removes the plan."""
        inputs, tolerance = self._inputs(spec), self.backend.tolerance(spec.stage)
        reference = self._reference(spec)
        try:
            validations = tuple(
                validate(plan, inputs, reference, bucket, tolerance, self.backend.device) for bucket in spec.buckets
            )
        except Exception as error:  # compilers that work at the first run raise errors of any kind
            self.cache.remove(spec, self.backend.fingerprint)
            raise PlanRejected(f"plan {spec} is rejected: it fails to run: {error}") from error
        for validation in validations:
            if not validation.is_accepted:
                self.cache.remove(spec, self.backend.fingerprint)
                raise PlanRejected(
                    f"plan {spec} is rejected: at bucket {validation.bucket} its error against eager float32 is "
                    f"{validation.error:.2g}; allowed: {validation.tolerance:.2g} ({self.backend.fingerprint})"
                )
        record = replace(stored.record, validations=validations)
        self.cache.update(spec, record)
        return plan, record

    def _reference(self, spec: PlanSpec) -> EagerReference:
        """Return the network's own output. Raises ModelRepositoryError if that is no image."""
        if spec.stage not in self._references:
            reference = EagerReference.of(spec.stage, self._network(spec.stage), self._inputs(spec))
            if not reference.is_finite:
                raise ModelRepositoryError(
                    f"{self.version} computes values that are not finite in stage {spec.stage}, in eager float32"
                )
            self._references[spec.stage] = reference
        return self._references[spec.stage]

    def _inputs(self, spec: PlanSpec) -> ValidationInputs:
        embed = self.time_embeddings.get(spec.stage)
        return make_validation_inputs(spec.inputs, self.version.config.num_classes, embed)

    @cached_property
    def _model(self) -> MsfModel:
        logger.info("%s: loading the networks to build plans", self.version)
        return self.version.load()

    def _network(self, stage: Stage) -> nn.Module:
        """Return the network that a plan is built from. Raises PlanError without the packages that it needs."""
        try:
            from msf_engine.model import DecodeModule  # imports torch and diffusers: seconds that cached plans save
        except ModuleNotFoundError as error:
            raise PlanError(
                f"plan {stage} of {self.version} is not in the plan cache; building it needs {error.name}. {INSTALL}"
            ) from error
        return (DecodeModule(self._model) if stage is Stage.DECODE else self._model.denoiser(stage)).eval()
