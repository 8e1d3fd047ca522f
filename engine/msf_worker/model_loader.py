"""From the model repository to runners: all that is wanted at the start, single versions later."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from msf_engine.backends import Backend, get_backend
from msf_engine.errors import ModelRepositoryError
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_models, load_plans
from msf_engine.repository import ModelVersion, list_versions, read_version
from msf_scheduler.model_control import Desired
from msf_worker.fault_injection import FaultyRunner
from msf_worker.model_runner import ModelRunner
from msf_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelLoader:
    """Loads as the first models of this worker were loaded: by the same backend, in the same precision."""

    settings: WorkerSettings
    backend: Backend

    def load(self, name: str, version: str) -> ModelRunner:
        """One version, its plans loaded or compiled, not yet warm. Takes as long as that does; raises EngineError.

        A new backend makes the plans: those of another may share memory, which they must not while one of them runs.
        """
        backend = get_backend(self.backend.name, self.backend.precision, self.settings.threads)
        found = read_version(self.settings.model_repo, name, version)
        return _runner(self.settings, found, load_plans(found, backend, _cache(self.settings), self.settings.buckets))

    def present(self) -> list[tuple[str, str]]:
        """What is in the repository now, by name and version."""
        try:
            return list_versions(self.settings.model_repo)
        except (ModelRepositoryError, OSError) as error:
            logger.warning("nothing more can be loaded: %s", error)
            return []


def load_first(settings: WorkerSettings, desired: Mapping[str, Desired]) -> tuple[ModelLoader, list[ModelRunner]]:
    """Every version that is there, of a model of which something is desired only those; warm.

    Raises EngineError. What is desired and gone from the repository is passed over.
    """
    versions = []
    for name, version in list_versions(settings.model_repo):
        if name not in desired or version in desired[name].versions:
            versions.append(read_version(settings.model_repo, name, version))
        else:
            logger.info("%s:%s is not served, as it was unloaded or never loaded by name", name, version)
    backend, plans = load_models(
        versions, settings.backend, settings.precision, settings.threads, _cache(settings), settings.buckets
    )
    runners = [_runner(settings, *its) for its in zip(versions, plans, strict=True)]
    for runner in runners:
        runner.warm_up()
    return ModelLoader(settings, backend), runners


def _cache(settings: WorkerSettings) -> PlanCache:
    return PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)


def _runner(settings: WorkerSettings, version: ModelVersion, plans: ModelPlans) -> ModelRunner:
    executor = Executor(plans, settings.slots)
    if settings.fatal_seed is None and settings.hanging_seed is None:
        return ModelRunner(version, executor)
    runner = FaultyRunner(version, executor)
    runner.fatal_seed, runner.hanging_seed = settings.fatal_seed, settings.hanging_seed
    return runner
