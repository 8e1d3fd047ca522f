"""Model versions that a worker serves: claims, metrics and registry follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from msf_engine.device import release_memory
from msf_scheduler.claims import Claim
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelInfo, ModelKey, WorkerInfo, WorkerLoad
from msf_scheduler.leases import Leases
from msf_scheduler.registry import Registry
from msf_worker.device_loop import DeviceLoop
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.waiting import until_redis_answers

logger = logging.getLogger(__name__)


class ServedModels:
    """Runners by model version, which a model manager may add and retire while the worker runs."""

    def __init__(
        self,
        info: WorkerInfo,
        runners: Sequence[ModelRunner],
        registry: Registry,
        leases: Leases,
        metrics: WorkerMetrics,
        device: DeviceLoop,
    ) -> None:
        self.info = info
        self.runners: Mapping[ModelKey, ModelRunner] = {}  # replaced, never changed: it may be iterated across awaits
        self.changed = asyncio.Event()  # a runner was added, or one is to be retired
        self._retiring: frozenset[ModelKey] = frozenset()
        self._has_left = False
        self._registry = registry
        self._leases = leases
        self._metrics = metrics
        self._device = device
        for runner in runners:
            self._include(runner)

    async def add(self, runner: ModelRunner) -> None:
        """Claim the jobs of one more model version from now on."""
        self._include(runner)
        self.changed.set()
        await self._announce((*self.info.models, runner.info()))

    def retire(self, models: Iterable[ModelKey]) -> None:
        """Stop serving these versions, and only these, as soon as none of their jobs is held."""
        self._retiring = frozenset(models)
        if self._retiring:
            self.changed.set()

    async def drop_retired(self, claims: Iterable[Claim]) -> None:
        """Drop retired versions that none of the held claims is for. Must not run while a claim is under way."""
        in_use = {(claim.job.spec.model, claim.job.spec.version) for claim in claims}
        leaving = self._retiring & self.runners.keys() - in_use
        if leaving:
            self.runners = {key: runner for key, runner in self.runners.items() if key not in leaving}
            for key in leaving:
                self._metrics.remove_model(key)
                self._device.remove_model(key)
            self._device.call(release_memory)
            await self._announce([model for model in self.info.models if (model.name, model.version) in self.runners])

    async def register(self) -> None:
        """Announce the worker and its models, for as long as it takes to reach Redis."""
        await until_redis_answers(lambda: self._registry.register(self.info))

    async def heartbeat(self) -> None:
        """Keep the worker registered, and publish its load. Raises QueueUnavailable."""
        await self._registry.heartbeat(self.info.id, self._load())

    async def leave(self) -> None:
        """Unregister the worker; models that are added later are not announced."""
        self._has_left = True
        try:
            await self._registry.unregister(self.info.id)
        except QueueUnavailable as error:
            logger.warning("cannot unregister: %s", error)

    def measure_capacity(self) -> None:
        """Update the metric of the steps per second that each model could make, once they are known."""
        for key, runner in self.runners.items():
            if steps_per_s := runner.steps_per_s():
                self._metrics.steps_available.labels(*key).set(steps_per_s)

    def _include(self, runner: ModelRunner) -> None:
        plans = runner.executor.plans
        backend, *_ = plans.backend.split() or [""]  # its fingerprint begins with its name
        self._metrics.add_model(runner.key, runner.model.config.all_stages)
        self._metrics.slots.labels(*runner.key).set(runner.executor.capacity)
        self._metrics.slots_in_use.labels(*runner.key).set_function(lambda: self._device.num_active(runner.key))
        self._metrics.describe(runner.key, backend, runner.fingerprint)
        self._metrics.load_seconds.labels(*runner.key).set(runner.load_s)
        self._metrics.build_seconds.labels(*runner.key).set(runner.build_s)
        self._leases.set_fingerprint(runner.key, runner.fingerprint)
        self._device.add_model(runner)
        self.runners = {**self.runners, runner.key: runner}
        self.measure_capacity()

    async def _announce(self, models: Sequence[ModelInfo]) -> None:
        self.info = self.info.model_copy(update={"models": tuple(models)})
        if not self._has_left:
            await self.register()

    def _load(self) -> WorkerLoad:
        runners = self.runners.values()
        p50_ms, p99_ms = self._metrics.latencies.quantiles_ms(0.5, 0.99)
        return WorkerLoad(
            num_slots=sum(runner.executor.capacity for runner in runners),
            num_slots_in_use=sum(self._device.num_active(key) for key in self.runners),
            batch_fill=self._metrics.take_fill_ratio(),
            images_per_s=self._metrics.latencies.images_per_s(),
            p50_ms=p50_ms,
            p99_ms=p99_ms,
        )
