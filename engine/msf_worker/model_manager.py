"""Model management in a worker: loads desired versions in the background, and retires those no longer desired."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from msf_engine.errors import EngineError
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelKey
from msf_scheduler.model_control import DesiredVersions, ModelControl, VersionReport, VersionState, WorkerReport
from msf_scheduler.queue import JobQueue
from msf_worker.device_loop import DeviceLoop
from msf_worker.model_loader import ModelLoader
from msf_worker.model_runner import ModelRunner
from msf_worker.served_models import ServedModels

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
RETIRE_DELAY_S = 5.0  # servers may still admit jobs of a version until they learn that it is not desired
LOADER_NICENESS = 10
CHANGED = "its folder has changed since it was loaded; versions are immutable: write a new one"
FAILED = "the worker failed to load it; see its log"


@dataclass
class ModelManager:
    """Loads one version at a time while the others are served."""

    loader: ModelLoader
    control: ModelControl
    queue: JobQueue
    models: ServedModels
    device: DeviceLoop
    is_loading: bool = False  # its thread cannot be interrupted
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_lower_priority)
    )
    _loading: dict[ModelKey, asyncio.Task[None]] = field(default_factory=dict)
    _failures: dict[ModelKey, tuple[int, str]] = field(default_factory=dict)  # revision and reason
    _undesired_since: dict[ModelKey, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow the desired state until cancelled."""
        try:
            while True:
                try:
                    await self._check()
                except QueueUnavailable as error:
                    logger.warning("cannot read the desired models: %s", error)
                await asyncio.sleep(CHECK_INTERVAL_S)
        finally:
            for task in self._loading.values():
                task.cancel()

    async def _check(self) -> None:
        revision, desired = await self.control.read()
        present = await asyncio.to_thread(self.loader.list_versions)
        pending = [key for key in present if self._must_load(key, desired)]
        if pending and not self._loading:
            name, _ = key = pending[0]
            self._loading[key] = asyncio.create_task(self._load(key, desired[name].revision))
        await self._retire_undesired(desired)
        versions = dict.fromkeys((*present, *self.models.runners))
        reports = tuple(self._report(key, desired, is_pending=key in pending) for key in versions)
        await self.control.report(self.models.info.id, WorkerReport(revision=revision, versions=reports))

    def _must_load(self, key: ModelKey, desired: Mapping[str, DesiredVersions]) -> bool:
        name, version = key
        if name not in desired or version not in desired[name].versions or key in self.models.runners:
            return False
        return key not in self._failures or self._failures[key][0] < desired[name].revision

    async def _load(self, key: ModelKey, revision: int) -> None:
        name = ":".join(key)
        started_at = time.monotonic()
        try:
            self.is_loading = True
            runner = await asyncio.get_running_loop().run_in_executor(self._thread, self._load_in_thread, key)
            await self._warm_up(runner)
            await self.models.add(runner)
            self._failures.pop(key, None)
            logger.info("serving %s, loaded in %.1f s", name, time.monotonic() - started_at)
        except EngineError as error:
            logger.error("cannot load %s: %s", name, error)
            self._failures[key] = revision, str(error)
        except Exception:
            logger.exception("cannot load %s", name)
            self._failures[key] = revision, FAILED
        finally:
            del self._loading[key]

    def _load_in_thread(self, key: ModelKey) -> ModelRunner:
        try:
            return self.loader.load(*key)
        finally:
            self.is_loading = False

    async def _warm_up(self, runner: ModelRunner) -> None:
        """Warm up in the device thread, where steps of other models run in between."""
        runs = runner.warm_up_runs()
        while await asyncio.wrap_future(self.device.call(lambda: next(runs, None))):
            pass

    async def _retire_undesired(self, desired: Mapping[str, DesiredVersions]) -> None:
        """Retire versions that no server admits jobs of any more, once their queues are empty."""
        now = time.monotonic()
        undesired = [key for key in self.models.runners if not _is_desired(key, desired)]
        self._undesired_since = {key: self._undesired_since.get(key, now) for key in undesired}
        settled = [key for key, since in self._undesired_since.items() if now - since >= RETIRE_DELAY_S]
        self.models.retire([key for key in settled if (await self.queue.depth(*key)).num_jobs_queued == 0])

    def _report(self, key: ModelKey, desired: Mapping[str, DesiredVersions], *, is_pending: bool) -> VersionReport:
        reason = ""
        if key in self.models.runners and key not in self._loading:  # it is registered, so servers know of it
            state = VersionState.READY if _is_desired(key, desired) else VersionState.UNLOADING
            if self.models.runners[key].model.has_changed():
                reason = CHANGED
        elif key in self._loading or is_pending:
            state = VersionState.LOADING
        else:
            state = VersionState.UNAVAILABLE
            reason = self._failures[key][1] if key in self._failures and _is_desired(key, desired) else "not loaded"
        return VersionReport(name=key[0], version=key[1], state=state, reason=reason)


def _lower_priority() -> None:
    """Give the steps of running jobs precedence over this thread and the threads that it starts."""
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)


def _is_desired(key: ModelKey, desired: Mapping[str, DesiredVersions]) -> bool:
    name, version = key
    return name not in desired or version in desired[name].versions
