"""A model's plans by the settings, for commands that run a model in their own process."""

from __future__ import annotations

from msf_cli.settings import Settings
from msf_engine.backends import Backend
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_version
from msf_engine.repository import ModelVersion


def plan_cache(settings: Settings) -> PlanCache:
    """Return the plan cache that the settings name."""
    return PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)


def load_model(settings: Settings, version: ModelVersion) -> tuple[Backend, ModelPlans]:
    """Load, or compile, a model's plans. Raises EngineError."""
    return load_version(
        version, settings.backend, settings.precision, settings.threads, plan_cache(settings), settings.buckets
    )
