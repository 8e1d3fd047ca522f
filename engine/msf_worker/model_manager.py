"""Keeps a worker's models as operators want them: loads in the background, lets go when nothing needs them any more."""

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
from msf_scheduler.model_control import Desired, DesiredModels, VersionReport, VersionState, WorkerReport
from msf_scheduler.queue import JobQueue
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_loader import ModelLoader
from msf_worker.model_runner import ModelRunner
from msf_worker.worker import Worker

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
GRACE_S = 5.0  # servers that have not heard yet that a version is not wanted may go on to admit jobs of it
LOADER_NICENESS = 10
CHANGED = "its folder has changed since it was loaded; a version stays what it is: write a new one"


@dataclass
class Keeper:
    """`Worker.run` runs it. One version is loaded at a time, while the others are served."""

    loader: ModelLoader
    desired: DesiredModels
    queue: JobQueue
    metrics: WorkerMetrics
    is_busy: bool = False  # the thread loads, and cannot be interrupted
    _thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_give_way)
    )
    _loading: dict[ModelKey, asyncio.Task[None]] = field(default_factory=dict)
    _failed: dict[ModelKey, tuple[int, str]] = field(default_factory=dict)  # at which revision, and why
    _unwanted_since: dict[ModelKey, float] = field(default_factory=dict)

    async def run(self, worker: Worker) -> None:
        try:
            while True:
                try:
                    await self._look(worker)
                except QueueUnavailable as error:
                    logger.warning("cannot hear which models are wanted: %s", error)
                await asyncio.sleep(LOOK_EVERY_S)
        finally:
            for task in self._loading.values():
                task.cancel()

    async def _look(self, worker: Worker) -> None:
        revision, desired = await self.desired.read()
        present = await asyncio.to_thread(self.loader.present)
        waiting = [key for key in present if self._is_to_load(key, desired, worker)]
        if waiting and not self._loading:
            key = waiting[0]
            self._loading[key] = asyncio.create_task(self._load(key, desired[key[0]].revision, worker))
        await self._let_go(desired, worker)
        reports = [
            self._report(key, key in waiting, desired, worker) for key in dict.fromkeys((*present, *worker.runners))
        ]
        await self.desired.report(worker.info.id, WorkerReport(revision=revision, versions=tuple(reports)))

    def _is_to_load(self, key: ModelKey, desired: Mapping[str, Desired], worker: Worker) -> bool:
        name, version = key
        wish = desired.get(name)
        if wish is None or version not in wish.versions or key in worker.runners:
            return False
        return key not in self._failed or self._failed[key][0] < wish.revision

    async def _load(self, key: ModelKey, revision: int, worker: Worker) -> None:
        name = ":".join(key)
        started_at = time.monotonic()
        try:
            self.is_busy = True
            runner = await asyncio.get_running_loop().run_in_executor(self._thread, self._load_in_thread, key)
            await worker.warm_up(runner)
            plans = runner.executor.plans
            self.metrics.describe(key, self.loader.backend.name, runner.fingerprint, plans.num_loaded, plans.num_built)
            await worker.serve(runner)
            self._failed.pop(key, None)
            logger.info("%s is served, loaded in %.1f s", name, time.monotonic() - started_at)
        except EngineError as error:
            logger.error("%s cannot be loaded: %s", name, error)
            self._failed[key] = revision, str(error)
        except Exception:
            logger.exception("%s cannot be loaded", name)
            self._failed[key] = revision, "the worker failed on it; its log has the cause"
        finally:
            del self._loading[key]

    def _load_in_thread(self, key: ModelKey) -> ModelRunner:
        try:
            return self.loader.load(*key)
        finally:
            self.is_busy = False

    async def _let_go(self, desired: Mapping[str, Desired], worker: Worker) -> None:
        """Once servers have stopped to admit jobs of a version, and those that were admitted are claimed."""
        now = time.monotonic()
        unwanted = [key for key in worker.runners if not _is_wanted(key, desired)]
        self._unwanted_since = {key: self._unwanted_since.get(key, now) for key in unwanted}
        late = [key for key, since in self._unwanted_since.items() if now - since >= GRACE_S]
        worker.retire([key for key in late if (await self.queue.depth(*key)).num_jobs_queued == 0])

    def _report(self, key: ModelKey, is_to_load: bool, desired: Mapping[str, Desired], worker: Worker) -> VersionReport:
        reason = ""
        if key in worker.runners and key not in self._loading:  # servers know of it
            state = VersionState.READY if _is_wanted(key, desired) else VersionState.UNLOADING
            if worker.runners[key].model.has_changed():
                reason = CHANGED
        elif key in self._loading or is_to_load:
            state = VersionState.LOADING
        else:
            state = VersionState.UNAVAILABLE
            reason = self._failed[key][1] if key in self._failed and _is_wanted(key, desired) else "not loaded"
        return VersionReport(name=key[0], version=key[1], state=state, reason=reason)


def _give_way() -> None:
    """Let this thread, and those that it starts, compute when the steps of running jobs do not need the processor."""
    if sys.platform == "linux":  # where threads have priorities of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOADER_NICENESS)


def _is_wanted(key: ModelKey, desired: Mapping[str, Desired]) -> bool:
    name, version = key
    return name not in desired or version in desired[name].versions
