"""Loading of model versions from the repository, each for itself: a damaged one harms no other."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from msf_engine.errors import EngineError, ModelRepositoryError
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_builder import PlanBuilder
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import first_backend, load_version
from msf_engine.repository import ModelVersion, read_version
from msf_engine.repository_scan import Contents, no_models, scan
from msf_scheduler.jobs import ModelKey
from msf_scheduler.model_control import DesiredVersions
from msf_worker.fault_injection import FaultyExecutor
from msf_worker.model_runner import ModelRunner
from msf_worker.plan_process import build_plans
from msf_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

MAX_REASONS = 5  # in one line


@dataclass
class FirstModels:
    """Outcome of a worker's start: versions to serve at once, versions to load meanwhile, and refused ones."""

    runners: list[ModelRunner] = field(default_factory=list)
    waiting: list[ModelKey] = field(default_factory=list)
    failures: dict[ModelKey, str] = field(default_factory=dict)


class ModelLoader:
    """Loads model versions, and builds plans that are not cached in another process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._plan_cache = PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)

    def load_first(self, desired: Mapping[str, DesiredVersions], *, may_be_none: bool = False) -> FirstModels:
        """Load the versions that are desired, and all versions of models without a desired state.

        Those whose plans are cached come first. If there are any, the others wait; else they are built until one can be
        served. Raises ModelRepositoryError if none can, unless there `may_be_none`.
        """
        first = FirstModels()
        try:
            contents = self.scan()
        except ModelRepositoryError as error:
            if not may_be_none:
                raise
            logger.error("%s", error)
            return first
        desired_keys = [key for key in contents.versions if is_desired(key, desired)]
        for key in contents.versions:
            if key not in desired_keys:
                logger.info("not serving %s, which is unloaded or was never loaded by name", ":".join(key))
        first.waiting = [key for key in desired_keys if not self._load_cached(key, first)]
        while first.waiting and not first.runners:
            self._try(first.waiting.pop(0), first)
            first.waiting = [key for key in first.waiting if not self._load_cached(key, first)]  # of the same network
        if not first.runners and len(desired_keys) == len(contents.versions) and not may_be_none:
            raise ModelRepositoryError(self._nothing_to_serve(contents, first.failures))
        return first

    def load(self, name: str, version: str) -> ModelRunner:
        """Load one more version, which is not warmed up. Raises EngineError."""
        model = read_version(self._settings.model_repo, name, version)
        settings = self._settings
        backend, started_at, build_s = settings.backend, time.monotonic(), 0.0
        if not self._is_cached(model):
            model.verify()  # here, as another process takes seconds to start
            backend = build_plans(settings, model)
            build_s = time.monotonic() - started_at
        _, plans = load_version(
            model, backend, settings.precision, settings.threads, self._plan_cache, settings.buckets
        )
        runner = self._make_runner(model, plans)
        runner.build_s = build_s
        return runner

    def scan(self) -> Contents:
        """List the versions that are in the repository now. Raises ModelRepositoryError."""
        return scan(self._settings.model_repo)

    def explain(self, key: ModelKey, error: Exception) -> str:
        """Log why a version cannot be served; return it for callers, who are not told where the repository is."""
        is_bug = not isinstance(error, (EngineError, OSError, MemoryError))
        reason = f"{type(error).__name__}: {error}" if is_bug or not str(error) else str(error)
        logger.error("cannot serve %s: %s", ":".join(key), reason, exc_info=error if is_bug else None)
        return reason.replace(f"{self._settings.model_repo}/", "")

    def _is_cached(self, model: ModelVersion) -> bool:
        settings = self._settings
        backend = first_backend(settings.backend, settings.precision, settings.threads)
        return PlanBuilder(model, backend, self._plan_cache, settings.buckets).is_cached()

    def _load_cached(self, key: ModelKey, first: FirstModels) -> bool:
        """Serve or refuse a version unless its plans must be built; return whether they need not."""
        try:
            if not self._is_cached(read_version(self._settings.model_repo, *key)):
                return False
        except Exception as error:
            first.failures[key] = self.explain(key, error)
        else:
            self._try(key, first)
        return True

    def _try(self, key: ModelKey, first: FirstModels) -> None:
        try:
            started_at = time.monotonic()
            runner = self.load(*key)
            for _ in runner.warm_up_runs() if runner.executor.plans.needs_warm_up else ():
                pass
            runner.load_s = time.monotonic() - started_at
        except Exception as error:
            first.failures[key] = self.explain(key, error)
        else:
            first.runners.append(runner)

    def _nothing_to_serve(self, contents: Contents, failures: Mapping[ModelKey, str]) -> str:
        if not contents.versions:
            return no_models(self._settings.model_repo, contents)
        reasons = [f"{':'.join(key)}: {reason}" for key, reason in failures.items()]
        if len(reasons) > MAX_REASONS:
            reasons[MAX_REASONS:] = [f"and {len(reasons) - MAX_REASONS} more"]
        return f"no model of {self._settings.model_repo} can be served: {'; '.join(reasons)}"

    def _make_runner(self, version: ModelVersion, plans: ModelPlans) -> ModelRunner:
        settings = self._settings
        if settings.fatal_seed is None and settings.hanging_seed is None:
            return ModelRunner(version, Executor(plans, settings.slots))
        return ModelRunner(version, FaultyExecutor(plans, settings.slots, settings.fatal_seed, settings.hanging_seed))


def is_desired(key: ModelKey, desired: Mapping[str, DesiredVersions]) -> bool:
    """Return whether a version is to be served: without a desired state, every version of a model is."""
    name, version = key
    return name not in desired or version in desired[name].versions
