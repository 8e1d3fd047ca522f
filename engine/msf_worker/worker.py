"""Worker of one device: claims jobs, runs their samples, and finishes complete jobs, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from msf_scheduler.claims import ClaimRequest
from msf_scheduler.connection import RedisClient
from msf_scheduler.dynamic_batching import RequestLevelPolicy
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelKey, WorkerInfo
from msf_scheduler.leases import Leases
from msf_scheduler.registry import Registry
from msf_scheduler.step_batching import BatchingPolicy, StepLevelPolicy
from msf_scheduler.tracing import Tracing
from msf_scheduler.tunables import HELD_S
from msf_worker.active_job import ActiveJob
from msf_worker.device_loop import DeviceLoop
from msf_worker.job_finisher import JobFinisher
from msf_worker.lease_keeper import LeaseKeeper
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.outcome import Outcome
from msf_worker.perfetto import PerfettoTrace
from msf_worker.progress_publisher import ProgressPublisher
from msf_worker.served_models import ServedModels
from msf_worker.settings import WorkerSettings
from msf_worker.waiting import RETRY_S, first_done

logger = logging.getLogger(__name__)

WAIT_FOR_WORK_S = 5.0
LOW_WATER_SHARE = 0.75  # of `HELD_S`: below it a full worker claims again
HAND_BACK_S = 5.0
MAX_BUDGET_STEPS = 2**31
MAX_HELD_SAMPLES = 4096  # of one model: more than a claim brings, as only active samples take memory on the device


class Worker:
    """Claiming loop of one process, in an event loop that does nothing for a step: the device has a thread."""

    def __init__(
        self,
        settings: WorkerSettings,
        info: WorkerInfo,
        runners: Sequence[ModelRunner],
        redis: RedisClient,
        metrics: WorkerMetrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._trace = PerfettoTrace(settings.trace_dir, info.id) if settings.trace_dir else None
        self.device = DeviceLoop(
            _make_policy(settings),
            metrics,
            self._deliver,
            low_water_s=LOW_WATER_SHARE * HELD_S,
            trace=self._trace,
        )
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._leases = Leases(redis, lease_s=settings.lease_s, result_ttl_s=settings.result_ttl_s)
        registry = Registry(redis, worker_ttl_s=settings.lease_s)
        self.models = ServedModels(info, runners, registry, self._leases, metrics, self.device)
        self._keeper = LeaseKeeper(settings, self.models, self._leases, redis, metrics, self.device)
        self._publisher = ProgressPublisher(self._leases, self._encoder)
        self._finisher = JobFinisher(self._keeper, self._leases, self._publisher, metrics, tracing)
        self._metrics = metrics
        metrics.watch_work(lambda: self.device.held_s)
        self._drain_timeout_s = settings.drain_timeout_s
        self._claims_alone = False  # a suspect runs, or waits for all other jobs to end
        self._arrival: asyncio.Task[None] | None = None  # ends when another claim may find work
        self._awaited: tuple[bool, tuple[ModelKey, ...]] = (False, ())  # by `_arrival`: full, models
        self._loop: asyncio.AbstractEventLoop

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish running jobs, hand back waiting ones, and leave.

        Once `hurry` is set, the running jobs are handed back too.
        """
        self._loop = asyncio.get_running_loop()
        await first_done(self.models.register(), stop.wait())
        self.device.start()
        claiming = asyncio.create_task(self._claim_until(stop))
        loops = (self._keeper.renew_forever(), self._keeper.heed_notices(), self._device_error())
        serving = [asyncio.create_task(loop) for loop in loops]
        try:
            await first_done(claiming, *serving)
            await first_done(self._drain(hurry), *serving)
        finally:
            await self._close([claiming, *serving])

    async def _device_error(self) -> None:
        """Raise the error that ends the device's thread."""
        await asyncio.wrap_future(self.device.ended)

    # Claiming

    async def _claim_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._keeper.work_wanted.clear()
            self.models.changed.clear()
            await self.models.drop_retired(self._keeper.claims.values())
            try:
                if not await self._claim():
                    await self._wait_for_work(stop)
            except QueueUnavailable as error:
                logger.warning("cannot claim: %s", error)
                await first_done(asyncio.sleep(RETRY_S), stop.wait())

    async def _claim(self) -> bool:
        """Claim jobs of each model. Returns True if the worker must claim again, as it is idle and a suspect waits.

        A claim that leaves work leaves a token, too, for which `_wait_for_work` does not wait.
        """
        if self._claims_alone and self._keeper.claims:
            return False
        runners = self.models.runners
        requests = [self._claim_request(runner) for runner in runners.values()]
        results = await self._leases.claim_many(self.models.info.id, requests, idle=not self._keeper.claims)
        self._claims_alone = any(result.alone for result in results)
        for (key, runner), result in zip(runners.items(), results, strict=True):
            for job, work_s in runner.make_jobs(self._keeper.hold(result.claims)):
                self.device.add(job, work_s)
            self._metrics.claims.labels(*key).inc(len(result.claims))
            self._metrics.expired.inc(result.num_expired)
        self._keeper.overtaking_terms.clear()  # every job that was claimed is known by now
        self._keeper.is_short_of_room = any(result.lacks_room for result in results)
        return self._claims_alone and not self._keeper.claims

    def _claim_request(self, runner: ModelRunner) -> ClaimRequest:
        """Ask for work until the worker holds enough, shared by its models."""
        budget_s = max(HELD_S - self.device.held_s, 0.0) / len(self.models.runners)
        budget_steps = math.ceil(budget_s * runner.steps_per_s()) if runner.steps_per_s() else MAX_BUDGET_STEPS
        return ClaimRequest(
            runner.key,
            min(budget_steps, MAX_BUDGET_STEPS),
            self._keeper.held_terms(runner.key),
            MAX_HELD_SAMPLES - self._keeper.num_samples(runner.key),
        )

    async def _wait_for_work(self, stop: asyncio.Event) -> None:
        """Wait for an arrival, or until little of the held work is left. Cutting off a read costs its connection."""
        is_full = self.device.held_s >= HELD_S
        if is_full:
            self.device.ask_for_work()
        models = () if self._claims_alone else tuple(self.models.runners)
        if self._arrival is not None and (self._arrival.done() or self._awaited != (is_full, models)):
            self._forget_arrival()
            return  # it may have taken the token of a job that came after the claim
        if self._arrival is None:
            open_models, full_models = ((), models) if is_full else (models, ())
            self._awaited = is_full, models
            self._arrival = asyncio.create_task(self._leases.wait_for_work(open_models, full_models, WAIT_FOR_WORK_S))
        await first_done(self._arrival, stop.wait(), self.models.changed.wait(), self._keeper.work_wanted.wait())
        if self._arrival.done():
            self._forget_arrival()

    def _forget_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival.add_done_callback(_retrieve_error)
            self._arrival = None

    # Results

    def _deliver(self, outcome: Outcome) -> None:
        """Take an outcome from the device's thread to the encoder's and the event loop's."""
        self._loop.call_soon_threadsafe(self._take, outcome)  # first: a job's end waits for what is published of it
        for job in outcome.completed:
            self._encoder.submit(self._finisher.encode, job, self._loop)

    def _take(self, outcome: Outcome) -> None:
        for job, preview, pixels in outcome.previews:
            if job.id in self._keeper.claims:
                self._publisher.publish_preview(job, preview, pixels)
        for job, progress in outcome.progress:
            if job.id in self._keeper.claims:
                self._publisher.publish_progress(job, progress)
        for job, error in outcome.failed:
            self._finisher.fail(job, error)
        for job in outcome.expired:
            self._finisher.expire(job)
        if outcome.wants_work:
            self._keeper.work_wanted.set()

    # Stopping

    async def _drain(self, hurry: asyncio.Event) -> None:
        """Hand back jobs that have not started, wait for the others, and hand back those that take too long."""
        logger.info("draining: %d jobs are held", len(self._keeper.claims))
        deadline = asyncio.get_running_loop().time() + self._drain_timeout_s
        idle: list[ActiveJob] = []
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                dropping = asyncio.wrap_future(self.device.call(self.device.drop_idle_jobs))
                await first_done(dropping, hurry.wait())
                idle = dropping.result() if dropping.done() else []
        await self._keeper.release(*(job.claim for job in idle))
        if self._keeper.claims:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await first_done(self._keeper.nothing_held.wait(), hurry.wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(HAND_BACK_S):  # without Redis, the leases expire
                await self._keeper.release(*self._keeper.claims.values())
                await self.models.leave()

    async def _close(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._forget_arrival()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.device.stop()
        await self._finisher.close()
        if self._trace:
            self._trace.close()
        self._encoder.shutdown(wait=False)


def _retrieve_error(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _make_policy(settings: WorkerSettings) -> BatchingPolicy:
    if settings.batching == "request":
        return RequestLevelPolicy(settings.batch_size, settings.batch_delay_s)
    return StepLevelPolicy()
