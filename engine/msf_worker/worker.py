"""Worker of one device: claims jobs, steps their samples, and finishes complete jobs, until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from msf_scheduler.connection import RedisClient
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import WorkerInfo
from msf_scheduler.leases import Leases
from msf_scheduler.legacy_dynamic_batching import RequestLevelPolicy
from msf_scheduler.legacy_step_batching import BatchingPolicy, Hold, StepBatch, StepLevelPolicy, active_shares
from msf_scheduler.registry import Registry
from msf_scheduler.tracing import Tracing
from msf_worker.job_finisher import JobFinisher
from msf_worker.lease_keeper import LeaseKeeper
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.perfetto import PerfettoTrace
from msf_worker.progress_publisher import ProgressPublisher
from msf_worker.served_models import ServedModels
from msf_worker.settings import WorkerSettings
from msf_worker.step_outcome import StepOutcome
from msf_worker.waiting import RETRY_S, first_done

logger = logging.getLogger(__name__)

WAIT_FOR_WORK_S = 5.0
MAX_BUDGET_STEPS = 2**31  # claims are bounded by slots alone


class Worker:
    """Claiming and stepping loops of one process. They share an event loop; networks run in the `device` thread."""

    def __init__(
        self,
        settings: WorkerSettings,
        info: WorkerInfo,
        runners: Sequence[ModelRunner],
        redis: RedisClient,
        metrics: WorkerMetrics,
        tracing: Tracing | None = None,
    ) -> None:
        self.device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._leases = Leases(redis, lease_s=settings.lease_s, result_ttl_s=settings.result_ttl_s)
        registry = Registry(redis, worker_ttl_s=settings.lease_s)
        self.models = ServedModels(info, runners, registry, self._leases, metrics)
        self._keeper = LeaseKeeper(settings, self.models, self._leases, redis, metrics)
        self._publisher = ProgressPublisher(self._leases, self._encoder)
        self._finisher = JobFinisher(self._keeper, self._leases, self._publisher, self._encoder, metrics, tracing)
        self._policy = _make_policy(settings)
        self._metrics = metrics
        self._trace = PerfettoTrace(settings.trace_dir, info.id) if settings.trace_dir else None
        self._drain_timeout_s = settings.drain_timeout_s
        self._claims_alone = False  # a suspect runs, or waits for all other jobs to end

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; then finish running jobs, hand back waiting ones, and leave."""
        await first_done(self.models.register(), stop.wait())
        claiming = asyncio.create_task(self._claim_until(stop))
        loops = (self._step_forever(), self._keeper.renew_forever(), self._keeper.heed_notices())
        serving = [asyncio.create_task(loop) for loop in loops]
        try:
            await first_done(claiming, *serving)
            await first_done(self._drain(), *serving)
        finally:
            await self._close([claiming, *serving])

    # Claiming

    async def _claim_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._keeper.slots_freed.clear()
            self.models.changed.clear()
            await self.models.drop_retired(self._keeper.claims.values())
            try:
                if not await self._claim():
                    await first_done(stop.wait(), self.models.changed.wait(), *self._claim_triggers())
            except QueueUnavailable as error:
                logger.warning("cannot claim: %s", error)
                await first_done(asyncio.sleep(RETRY_S), stop.wait())

    async def _claim(self) -> bool:
        """Claim as many jobs of each model as it has room for. Returns False if another claim can bring nothing now."""
        if self._claims_alone and self._keeper.claims:
            return False
        self._claims_alone = False
        has_claimed = False
        for key, runner in self.models.runners.items():
            if not runner.room:
                continue
            answer = await self._leases.claim(
                self.models.info.id,
                *key,
                budget_steps=MAX_BUDGET_STEPS,
                held=(),
                max_samples=runner.room,
                idle=not self._keeper.claims,
            )
            self._claims_alone = answer.alone
            for claim in answer.claims:
                self._keeper.hold(claim)
                runner.add(claim)
            has_claimed = has_claimed or bool(answer.claims)
            self._metrics.claims.labels(*key).inc(len(answer.claims))
            self._metrics.expired.inc(answer.num_expired)
            if self._claims_alone:
                return has_claimed or not self._keeper.claims
        return has_claimed

    def _claim_triggers(self) -> list[Coroutine[Any, Any, Any]]:
        """Return waits for what makes a claim useful: an arrival where there is room, or a freed slot."""
        runners = self.models.runners
        open_queues = [key for key, runner in runners.items() if runner.room and not self._claims_alone]
        arrival = [self._leases.wait_for_work(open_queues, (), WAIT_FOR_WORK_S)] if open_queues else []
        return [*arrival, self._keeper.slots_freed.wait()]

    # Stepping

    async def _step_forever(self) -> None:
        while True:
            self._update_slots()
            choice = self._choose()
            if isinstance(choice, StepBatch):
                await self._step(choice)
            else:
                await self._wait_for_samples(choice)

    def _update_slots(self) -> None:
        """Drop lost jobs, expire late ones, and let waiting samples join."""
        lost = self._keeper.take_lost()
        for runner in self.models.runners.values():
            for job_id in lost & runner.jobs.keys():
                logger.info("dropping job %s, whose lease is gone", job_id)
                self._drop(runner, job_id)
            for job in runner.late_jobs():
                self._drop(runner, job.id)
                self._finisher.expire(job)
            runner.fill_slots()

    def _drop(self, runner: ModelRunner, job_id: str) -> None:
        runner.drop(job_id)
        self._keeper.slots_freed.set()

    def _choose(self) -> StepBatch | Hold | None:
        runners = self.models.runners.values()
        terms = (job.terms for runner in runners for job in runner.jobs.values())
        shares = active_shares((job_terms.tenant, job_terms.weight) for job_terms in terms)
        return self._policy.choose(
            [candidate for runner in runners for candidate in runner.candidates(shares)],
            costs={runner.key: runner.costs for runner in runners},
            pressure=max((runner.num_slots_in_use() / runner.executor.num_slots for runner in runners), default=0.0),
            now=time.monotonic(),
        )

    async def _wait_for_samples(self, hold: Hold | None) -> None:
        self._keeper.steps_possible.clear()
        timeout_s = None if hold is None else max(hold.until - time.monotonic(), 0.0)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._keeper.steps_possible.wait(), timeout_s)

    async def _step(self, batch: StepBatch) -> None:
        runner = self.models.runners[batch.model]
        with self._keeper.watch_step():
            outcome = await runner.step(batch, self.device, self._keeper.watched)
        self._record(batch, outcome)
        self._publish(outcome)
        self._finish(outcome)

    def _record(self, batch: StepBatch, outcome: StepOutcome) -> None:
        if outcome.seconds is None:
            return
        self._metrics.record_step(batch, outcome.seconds, len(outcome.previews))
        if self._trace:
            self._trace.record(batch, outcome.members, outcome.started_at, outcome.seconds)

    def _publish(self, outcome: StepOutcome) -> None:
        for job, preview, pixels in outcome.previews:
            if job.id in self._keeper.claims:
                self._publisher.publish_preview(job, preview, pixels)
        for job, progress in outcome.progress:
            if job.id in self._keeper.claims:
                self._publisher.publish_progress(job, progress)

    def _finish(self, outcome: StepOutcome) -> None:
        if outcome.has_freed_slots:
            self._keeper.slots_freed.set()
        for job in outcome.completed:
            self._finisher.succeed(job)
        for job, error in outcome.failed:
            self._finisher.fail(job, error)

    # Stopping

    async def _drain(self) -> None:
        """Hand back jobs that have not started, wait for the others, and hand back those that take too long."""
        logger.info("draining: %d jobs are held", len(self._keeper.claims))
        jobs = [job for runner in self.models.runners.values() for job in runner.jobs.values()]
        await self._keeper.release(*(job.claim for job in jobs if job.started_at is None))
        if self._keeper.claims:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._keeper.nothing_held.wait(), self._drain_timeout_s)
        await self._keeper.release(*self._keeper.claims.values())
        await self.models.leave()

    async def _close(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._finisher.close()
        if self._trace:
            self._trace.close()
        self._encoder.shutdown(wait=False)
        self.device.shutdown(wait=False)


def _make_policy(settings: WorkerSettings) -> BatchingPolicy:
    if settings.batching == "request":
        return RequestLevelPolicy(settings.batch_size, settings.batch_delay_s)
    return StepLevelPolicy()
