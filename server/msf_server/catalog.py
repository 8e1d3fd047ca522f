"""The models that requests may name and whether anyone serves them, as Redis knew it a moment ago."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelInfo, ModelKey
from msf_scheduler.model_control import Desired, DesiredModels
from msf_scheduler.registry import Registry
from msf_server.errors import ModelNotFound, Unavailable, shown


class Catalog:
    """The registry, read again when older than `max_age_s`, so that validation costs no round trip."""

    def __init__(
        self,
        registry: Registry,
        desired: DesiredModels,
        *,
        worker_absence_s: float,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self.desired = desired
        self._worker_absence_s = worker_absence_s
        self._max_age_s = max_age_s
        self._clock = clock
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._is_forgotten = False
        self._failure: str | None = None
        self._models: tuple[ModelInfo, ...] = ()
        self._desired: dict[str, Desired] = {}
        self._served_at: dict[ModelKey, float] = {}
        self._fingerprints: dict[ModelKey, set[str]] = {}
        self._strict: dict[ModelKey, Counter[str]] = {}  # slots by fingerprint, where strict jobs can be run

    async def models(self) -> tuple[ModelInfo, ...]:
        """Every model version ever registered, ordered by name and version; raises QueueUnavailable."""
        async with self._reading:
            if self._clock() - self._read_at > self._max_age_s:
                await self._read()
        if self._failure is not None:
            raise QueueUnavailable(self._failure)
        return self._models

    async def find(self, wanted: str | None) -> ModelInfo:
        """The model "name:version", the newest version of "name", or of the first model.

        What was rolled back stays registered, so what nobody serves is chosen last, and what is unloaded never.
        Raises ModelNotFound, Unavailable, QueueUnavailable.
        """
        models = await self.models()
        if not models:
            raise Unavailable("No model is known yet: no worker has registered.", code=ErrorCode.NO_WORKER)
        served = [model for model in models if self.is_served(model)]
        if wanted is None:
            wanted = (served or models)[0].name
        matches = [model for model in models if wanted in (model.name, ":".join(_key(model)))]
        if not matches:
            known = ", ".join(":".join(_key(model)) for model in models)
            raise ModelNotFound(f"Unknown model {shown(wanted)}. Allowed: {known}.", param="model")
        loaded = [model for model in matches if self.is_wanted(model)]
        if not loaded:
            allowed = ", ".join(":".join(_key(model)) for model in served) or "none, as nothing is loaded"
            raise ModelNotFound(
                f"{shown(wanted)} is not loaded. Allowed: {allowed}.", param="model", code=ErrorCode.MODEL_NOT_LOADED
            )
        return max(loaded, key=lambda model: (model in served, *_version_order(model)))

    def forget(self) -> None:
        """Read again at the next call, however young what was read is, or is being read meanwhile."""
        self._read_at = -math.inf
        self._is_forgotten = True

    def is_wanted(self, model: ModelInfo) -> bool:
        """Whether no operator has unloaded it."""
        return model.name not in self._desired or model.version in self._desired[model.name].versions

    def is_served(self, model: ModelInfo) -> bool:
        """Whether `model` is wanted and a live worker that serves it was seen within the last `worker_absence_s`."""
        return (
            self.is_wanted(model)
            and self._clock() - self._served_at.get(_key(model), -math.inf) <= self._worker_absence_s
        )

    def fingerprint(self, model: ModelInfo) -> str | None:
        """Of what runs `model`; None when its live workers differ in it or there are none."""
        fingerprints = self._fingerprints.get(_key(model), set())
        return next(iter(fingerprints)) if len(fingerprints) == 1 else None

    def strict_fingerprint(self, model: ModelInfo) -> str | None:
        """The one with the most slots among live workers that run strict jobs of `model`; None: there are none."""
        slots = self._strict.get(_key(model), Counter[str]())
        return max(slots, key=lambda fingerprint: (slots[fingerprint], fingerprint), default=None)

    async def _read(self) -> None:
        self._is_forgotten = False
        try:
            # First: what replaces a version is registered before that is unwanted, and must not be seen later.
            _, desired = await self.desired.read()
            models, workers, last_seen_s = await asyncio.gather(
                self._registry.models(), self._registry.workers(), self._registry.last_seen_s()
            )
        except QueueUnavailable as error:
            self._failure = str(error)  # kept as long as an answer: callers must not queue up to fail slowly
        else:
            self._failure = None
            self._models = tuple(models)
            self._desired = desired
            now = self._clock()
            # Before our time: when all workers are away, they may be restarting and have served all of it.
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
        if not self._is_forgotten:
            self._read_at = self._clock()


def _key(model: ModelInfo) -> ModelKey:
    return (model.name, model.version)


def _version_order(model: ModelInfo) -> tuple[bool, int, str]:
    is_number = model.version.isdecimal()
    return (is_number, int(model.version) if is_number else 0, model.version)
