"""Model management in a worker: loads desired versions in the background, and retires those no longer desired."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from msf_engine.errors import ModelRepositoryError
from msf_engine.repository_scan import Contents
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelKey
from msf_scheduler.model_control import DesiredVersions, ModelControl, VersionReport, VersionState, WorkerReport
from msf_scheduler.queue import JobQueue
from msf_worker.device_loop import DeviceLoop
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_loader import FirstModels, ModelLoader, is_desired
from msf_worker.model_runner import ModelRunner
from msf_worker.repository_poll import RepositoryPoll
from msf_worker.served_models import ServedModels

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 1.0
RETIRE_DELAY_S = 5.0  # servers may still admit jobs of a version until they learn that it is not desired
LOADER_NICENESS = 10
CHANGED = "its folder has changed since it was loaded; versions are immutable: write a new one"
NOT_LOADED = "not loaded"


@dataclass
class ModelManager:
    """Loads one version at a time while the others are served."""

    loader: ModelLoader
    control: ModelControl
    queue: JobQueue
    models: ServedModels
    device: DeviceLoop
    metrics: WorkerMetrics
    poll: RepositoryPoll | None = None  # None: versions that appear are loaded on request only
    is_loading: bool = False  # its thread cannot be interrupted
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_lower_priority)
    )
    _loading: dict[ModelKey, asyncio.Task[None]] = field(default_factory=dict)
    _waiting: set[ModelKey] = field(default_factory=set)  # since the worker's start
    _failures: dict[ModelKey, tuple[int, str]] = field(default_factory=dict)  # revision and reason
    _refusals: dict[ModelKey, str] = field(default_factory=dict)  # of folders that are no versions
    _unreadable: str = ""  # why the repository could not be read
    _undesired_since: dict[ModelKey, float] = field(default_factory=dict)

    def resume(self, first: FirstModels, revision: int) -> None:
        """Continue where the worker's start ended, which followed the desired state of `revision`."""
        self._waiting |= {*first.waiting}
        self._failures |= {key: (revision, reason) for key, reason in first.failures.items()}
        if self.poll is not None:
            self.poll.look(first.failures)
            self.poll.mark_tried(first.failures)

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
        contents, changed = await asyncio.to_thread(self._look)
        owed = [key for key in contents.versions if await self._has_jobs_left(key, desired)]
        pending = [key for key in contents.versions if key in owed or self._must_load(key, desired)]
        if pending and not self._loading:
            name, _ = key = pending[0]
            if self.poll is not None:
                self.poll.mark_tried([key])
            self._loading[key] = asyncio.create_task(
                self._load(key, desired[name].revision if name in desired else revision)
            )
        await self._retire_undesired(desired)
        versions = dict.fromkeys((*contents.versions, *self.models.runners))
        reports = [self._report(key, desired, pending, changed) for key in versions]
        reports += [_unavailable(key, reason) for key, reason in contents.refusals.items() if key not in versions]
        self.metrics.report_refused(
            (report.name, report.version)
            for report in reports
            if report.state is VersionState.UNAVAILABLE and report.reason != NOT_LOADED
        )
        await self.control.report(self.models.info.id, WorkerReport(revision=revision, versions=tuple(reports)))

    def _look(self) -> tuple[Contents, set[ModelKey]]:
        """Read the repository, which may take long; return its contents, and which served versions have changed."""
        problem, contents = "", Contents()
        try:
            contents = self.loader.scan()
        except ModelRepositoryError as error:
            problem = str(error)
        if problem and problem != self._unreadable:
            logger.error("%s", problem)
        for key, reason in contents.refusals.items():
            if self._refusals.get(key) != reason:
                logger.error("cannot serve %s: %s", ":".join(filter(None, key)), reason)
        self._unreadable, self._refusals = problem, contents.refusals
        if self.poll is not None:
            self.poll.look(key for key in contents.versions if key not in self.models.runners)
        return contents, {key for key, runner in self.models.runners.items() if runner.model.has_changed()}

    def _must_load(self, key: ModelKey, desired: Mapping[str, DesiredVersions]) -> bool:
        name, _ = key
        if key in self.models.runners or not is_desired(key, desired):
            return False
        if name not in desired:
            is_waiting = key in self._waiting and key not in self._failures
            return is_waiting or (self.poll is not None and self.poll.is_new(key))
        return key not in self._failures or self._failures[key][0] < desired[name].revision

    async def _has_jobs_left(self, key: ModelKey, desired: Mapping[str, DesiredVersions]) -> bool:
        """Return whether jobs of a version were accepted before it was unloaded, and their worker has died."""
        if key in self.models.runners or key in self._failures or is_desired(key, desired):
            return False
        return (await self.queue.depth(*key)).num_jobs_queued > 0

    async def _load(self, key: ModelKey, revision: int) -> None:
        name = ":".join(key)
        started_at = time.monotonic()
        try:
            self.is_loading = True
            runner = await asyncio.get_running_loop().run_in_executor(self._thread, self._load_in_thread, key)
            await self._warm_up(runner)
            runner.load_s = time.monotonic() - started_at
            await self.models.add(runner)
            self._failures.pop(key, None)
            logger.info("serving %s, loaded in %.1f s", name, runner.load_s)
        except Exception as error:
            self._failures[key] = revision, self.loader.explain(key, error)
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
        undesired = [key for key in self.models.runners if not is_desired(key, desired)]
        self._undesired_since = {key: self._undesired_since.get(key, now) for key in undesired}
        settled = [key for key, since in self._undesired_since.items() if now - since >= RETIRE_DELAY_S]
        self.models.retire([key for key in settled if (await self.queue.depth(*key)).num_jobs_queued == 0])

    def _report(
        self,
        key: ModelKey,
        desired: Mapping[str, DesiredVersions],
        pending: Iterable[ModelKey],
        changed: Iterable[ModelKey],
    ) -> VersionReport:
        if key in self.models.runners and key not in self._loading:  # it is registered, so servers know of it
            state = VersionState.READY if is_desired(key, desired) else VersionState.UNLOADING
            return VersionReport(name=key[0], version=key[1], state=state, reason=CHANGED if key in changed else "")
        if key in self._loading or key in pending:
            return VersionReport(name=key[0], version=key[1], state=VersionState.LOADING)
        is_refused = key in self._failures and is_desired(key, desired)
        return _unavailable(key, self._failures[key][1] if is_refused else NOT_LOADED)


def _lower_priority() -> None:
    """Give the steps of running jobs precedence over this thread and the threads that it starts."""
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)


def _unavailable(key: ModelKey, reason: str) -> VersionReport:
    return VersionReport(name=key[0], version=key[1], state=VersionState.UNAVAILABLE, reason=reason)
