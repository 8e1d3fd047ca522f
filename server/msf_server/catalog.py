"""Registered models and the workers that serve them, cached from Redis for about a second."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from msf_scheduler.aliases import Aliases, Weights, choose_version
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable, listed
from msf_scheduler.jobs import ModelInfo, ModelKey
from msf_scheduler.model_control import DesiredVersions, ModelControl, VersionReport, VersionState, best_reports
from msf_scheduler.registry import Registry
from msf_server.errors import ApiError, InvalidRequest, quoted


@dataclass(frozen=True)
class Availability:
    """Current service of a model version by live workers."""

    is_served: bool
    fingerprint: str | None  # of all of them; None: there are none, or they differ
    strict_fingerprint: str | None  # the one with the most slots for strict jobs; None: no worker runs any


class Catalog:
    """Cache of the registry, refreshed when older than `max_age_s`, so that validation costs no round trip."""

    def __init__(
        self,
        registry: Registry,
        model_control: ModelControl,
        aliases: Aliases,
        *,
        worker_absence_s: float,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._model_control = model_control
        self._aliases = aliases
        self._worker_absence_s = worker_absence_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._is_stale = False
        self._failure: str | None = None
        self._models: tuple[ModelInfo, ...] = ()
        self._revision = -1  # of `_desired`
        self._desired: dict[str, DesiredVersions] = {}
        self._weights: dict[str, Weights] = {}  # by alias
        self._reports: dict[ModelKey, VersionReport] = {}
        self._served_at: dict[ModelKey, float] = {}
        self._fingerprints: dict[ModelKey, set[str]] = {}
        self._strict: dict[ModelKey, Counter[str]] = {}  # slots by fingerprint, where strict jobs can be run

    async def models(self) -> tuple[ModelInfo, ...]:
        """Return every registered model version by name and version. Raises QueueUnavailable."""
        async with self._reading:
            if self._clock() - self._read_at > self._max_age_s:
                await self._read()
        if self._failure is not None:
            raise QueueUnavailable(self._failure)
        return self._models

    async def refresh(self) -> None:
        """Follow what operators have loaded and unloaded until now, at any server. Raises QueueUnavailable."""
        if await self._model_control.revision() != self._revision:
            self.forget()
        await self.models()

    async def find(self, name: str | None, routing_key: str | None = None) -> ModelInfo:
        """Return the model "name:version", the version that an alias stands for, or the newest version of "name".

        Without a name, it is that of the first model. Of an alias with several versions, `routing_key` chooses one by
        their weights; without it, it is the heaviest. Versions that no worker serves are chosen last (a version stays
        registered after a rollback), unloaded ones never. Raises ApiError, QueueUnavailable.
        """
        models = await self.models()
        if not models:
            problems = "".join(f" {problem.name}:{problem.version}: {problem.reason}." for problem in self.refused())
            raise ApiError(
                f"No model is available yet: no worker has registered one.{problems}", code=ErrorCode.NO_WORKER
            )
        served = [model for model in models if self.is_served(model)]
        if name is None:
            name = (served or models)[0].name
        weights = self._weights.get(name)
        if weights is None:
            matches = [model for model in models if name in (model.name, ":".join(_key(model)))]
        else:
            base = name.partition(":")[0]
            matches = [model for model in models if model.name == base and weights.get(model.version, 0) > 0]
        if not matches:
            raise self._unknown(name)
        loaded = [model for model in matches if self.is_loaded(model)]
        if not loaded:
            allowed = ", ".join(":".join(_key(model)) for model in served) or "none, as nothing is loaded"
            raise InvalidRequest(
                f"Model {quoted(name)} is not loaded. Allowed: {allowed}.",
                param="model",
                code=ErrorCode.MODEL_NOT_LOADED,
            )
        if weights is not None:
            return _routed([model for model in loaded if model in served] or loaded, weights, routing_key)
        return max(loaded, key=lambda model: (model in served, *_version_order(model)))

    def teacher_of(self, model: ModelInfo) -> ModelInfo | None:
        """Return the version that `model` was distilled from; None if it was not, or if that version is not served."""
        teachers = (each for each in self._models if _key(each) == (model.name, model.teacher))
        return next(filter(self.is_served, teachers), None)

    def aliases(self) -> dict[str, Weights]:
        """Return the weights of each alias's versions."""
        return self._weights

    def forget(self) -> None:
        """Refresh at the next call, even if a refresh is in progress now."""
        self._read_at = -math.inf
        self._is_stale = True

    def is_loaded(self, model: ModelInfo) -> bool:
        """Return whether no operator has unloaded `model`."""
        return self._is_desired(_key(model))

    def reports(self) -> list[VersionReport]:
        """Return the best that any worker reports of each version, and READY for served ones without a report."""
        reports = dict(self._reports)
        for key, report in reports.items():
            if report.state in (VersionState.READY, VersionState.UNLOADING):
                state = VersionState.READY if self._is_desired(key) else VersionState.UNLOADING
                reports[key] = report.model_copy(update={"state": state})
        for model in self._models:
            if _key(model) not in reports and self.is_served(model):
                reports[_key(model)] = VersionReport(name=model.name, version=model.version, state=VersionState.READY)
        return sorted(reports.values(), key=lambda report: (report.name, len(report.version), report.version))

    def refused(self) -> list[VersionReport]:
        """Return the versions that are to be served and cannot be, with the reasons."""
        return [
            report
            for report in self.reports()
            if report.state is VersionState.UNAVAILABLE and self._is_desired((report.name, report.version))
        ]

    def problem(self, model: ModelInfo) -> str:
        """Return why `model` is not served, if that is known."""
        report = self._reports.get(_key(model))
        return report.reason if report and not self.is_served(model) else ""

    def is_served(self, model: ModelInfo) -> bool:
        """Return whether `model` is loaded and a live worker served it within the last `worker_absence_s`."""
        return (
            self.is_loaded(model)
            and self._clock() - self._served_at.get(_key(model), -math.inf) <= self._worker_absence_s
        )

    def availability(self, model: ModelInfo) -> Availability:
        """Return how the live workers serve `model`."""
        fingerprints = self._fingerprints.get(_key(model), set())
        slots = self._strict.get(_key(model), Counter[str]())
        return Availability(
            is_served=self.is_served(model),
            fingerprint=next(iter(fingerprints)) if len(fingerprints) == 1 else None,
            strict_fingerprint=max(slots, key=lambda fingerprint: (slots[fingerprint], fingerprint), default=None),
        )

    def _is_desired(self, key: ModelKey) -> bool:
        name, version = key
        return name not in self._desired or version in self._desired[name].versions

    def _unknown(self, name: str) -> ApiError:
        """Return the error for a model that no worker ever served."""
        reports = [report for key, report in self._reports.items() if name in (report.name, ":".join(key))]
        if any(report.state is VersionState.LOADING for report in reports):
            return ApiError(f"Model {quoted(name)} is still being loaded.", code=ErrorCode.NO_WORKER)
        reasons = "".join(f" Version {report.version} cannot be served: {report.reason}." for report in reports)
        allowed = listed([*(":".join(_key(model)) for model in self._models), *self._weights])
        return InvalidRequest(
            f"Unknown model {quoted(name)}. Allowed: {allowed}.{reasons}", param="model", code=ErrorCode.MODEL_NOT_FOUND
        )

    async def _read(self) -> None:
        self._is_stale = False
        try:
            # First: a version's successor is registered before the version is unloaded, and must not appear later.
            revision, desired = await self._model_control.read()
            models, workers, last_seen_s, weights = await asyncio.gather(
                self._registry.models(),
                self._registry.workers(),
                self._registry.last_seen_s(),
                self._aliases.read(),
            )
            reports = await self._model_control.reports([worker.id for worker in workers])
        except QueueUnavailable as error:
            self._failure = str(error)  # cached like an answer, so that callers do not queue up to fail slowly
        else:
            self._failure = None
            self._models = tuple(models)
            self._revision, self._desired = revision, desired
            self._weights = weights
            self._reports = best_reports(reports)
            now = self._clock()
            # Before this server started: workers that are all absent may be restarting, and served everything.
            away_s = math.inf if workers or last_seen_s is None else last_seen_s
            for model in models:
                self._served_at.setdefault(_key(model), now - away_s)
            self._served_at.update({_key(model): now for worker in workers for model in worker.models})
            self._fingerprints = defaultdict(set)
            self._strict = defaultdict(Counter)
            for worker in workers:
                for model in worker.models:
                    self._fingerprints[_key(model)].add(model.fingerprint)
                    if model.strict_cost is not None:
                        self._strict[_key(model)][model.fingerprint] += worker.num_slots
        if not self._is_stale:
            self._read_at = self._clock()


def _routed(models: list[ModelInfo], weights: Weights, routing_key: str | None) -> ModelInfo:
    """Return the model that `routing_key` chooses among `models`, which share the weight of those that are absent."""
    versions = {model.version: model for model in models}
    if routing_key is None:
        return max(models, key=lambda model: (weights[model.version], *_version_order(model)))
    return versions[choose_version({version: weights[version] for version in versions}, routing_key)]


def _key(model: ModelInfo) -> ModelKey:
    return (model.name, model.version)


def _version_order(model: ModelInfo) -> tuple[bool, int, str]:
    is_number = model.version.isdecimal()
    return (is_number, int(model.version) if is_number else 0, model.version)
