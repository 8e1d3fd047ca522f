"""Loading of model versions from the repository: all at the start, single ones later."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from msf_engine.backends import Backend, get_backend
from msf_engine.errors import ModelRepositoryError
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_models, load_plans
from msf_engine.repository import ModelVersion, list_versions, read_version
from msf_scheduler.jobs import ModelKey
from msf_scheduler.model_control import DesiredVersions
from msf_worker.fault_injection import FaultyExecutor
from msf_worker.model_runner import ModelRunner
from msf_worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


class ModelLoader:
    """Loads model versions, all with the same backend and precision."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.backend: Backend  # of the first models
        self._settings = settings
        self._plan_cache = PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)

    def load_first(self, desired: Mapping[str, DesiredVersions]) -> list[ModelRunner]:
        """Load the versions that are desired, and all versions of models without a desired state.

        Desired versions that are not in the repository are skipped. Raises EngineError.
        """
        settings, versions = self._settings, []
        for name, version in list_versions(settings.model_repo):
            if name not in desired or version in desired[name].versions:
                versions.append(read_version(settings.model_repo, name, version))
            else:
                logger.info("not serving %s:%s, which is unloaded or was never loaded by name", name, version)
        self.backend, all_plans = load_models(
            versions, settings.backend, settings.precision, settings.threads, self._plan_cache, settings.buckets
        )
        runners = [self._make_runner(version, plans) for version, plans in zip(versions, all_plans, strict=True)]
        if self.backend.needs_warm_up:
            for runner in runners:
                for _ in runner.warm_up_runs():
                    pass
        return runners

    def load(self, name: str, version: str) -> ModelRunner:
        """Load one more version, or compile its plans; it is not warmed up. Raises EngineError.

        Its plans get a backend of their own, as none of one backend's may be loaded while another runs.
        """
        settings = self._settings
        backend = get_backend(self.backend.name, self.backend.precision, settings.threads)
        model = read_version(settings.model_repo, name, version)
        return self._make_runner(model, load_plans(model, backend, self._plan_cache, settings.buckets))

    def list_versions(self) -> list[ModelKey]:
        """Return the names and versions that are in the repository now."""
        try:
            return list_versions(self._settings.model_repo)
        except (ModelRepositoryError, OSError) as error:
            logger.warning("cannot read the model repository: %s", error)
            return []

    def _make_runner(self, version: ModelVersion, plans: ModelPlans) -> ModelRunner:
        settings = self._settings
        if settings.fatal_seed is None and settings.hanging_seed is None:
            return ModelRunner(version, Executor(plans, settings.slots))
        return ModelRunner(version, FaultyExecutor(plans, settings.slots, settings.fatal_seed, settings.hanging_seed))
