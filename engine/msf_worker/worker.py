"""The worker: claim jobs, step their samples, finish what is complete, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from redis.asyncio import Redis

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import ModelInfo, ModelKey, WorkerInfo, WorkerLoad
from msf_scheduler.leases import Claim, Leases
from msf_scheduler.notices import notices
from msf_scheduler.registry import Registry
from msf_scheduler.step_batching import BatchingPolicy, Hold, StepBatch, StepLevel, active_shares
from msf_scheduler.tracing import Tracing
from msf_scheduler.tunables import RESULT_TTL_S
from msf_worker.active_job import ActiveJob
from msf_worker.errors import StepTimeout
from msf_worker.job_finisher import RETRY_S, Finisher, until_redis_answers
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import Executed, ModelRunner
from msf_worker.perfetto import Trace
from msf_worker.progress_publisher import Showing

logger = logging.getLogger(__name__)

WAIT_FOR_WORK_S = 5.0
_DONE = object()


class Keeper(Protocol):
    """Decides which models a worker serves."""

    async def run(self, worker: Worker) -> None:
        """For as long as the worker serves."""
        ...


class Worker:
    """Four tasks share the runners: claiming, stepping, keeping the leases, and heeding notices; jobs that end go
    to the finisher.

    They all run on one event loop; the networks run in one thread beside it.
    """

    def __init__(
        self,
        info: WorkerInfo,
        runners: Sequence[ModelRunner],
        redis: Redis,
        metrics: WorkerMetrics,
        *,
        lease_s: float,
        result_ttl_s: float = RESULT_TTL_S,
        drain_timeout_s: float,
        step_timeout_s: float,
        policy: BatchingPolicy | None = None,
        trace: Trace | None = None,
        tracing: Tracing | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.info = info
        self._runners = {runner.key: runner for runner in runners}
        self._redis = redis
        fingerprints = {runner.key: runner.fingerprint for runner in runners}
        self._leases = Leases(redis, lease_s=lease_s, result_ttl_s=result_ttl_s, fingerprints=fingerprints)
        self._registry = Registry(redis, worker_ttl_s=lease_s)
        self._metrics = metrics
        self._policy = policy or StepLevel()
        self._trace = trace
        self._heartbeat_s = lease_s / 3
        self._drain_timeout_s = drain_timeout_s
        self._step_timeout_s = step_timeout_s
        self._step_began_at: float | None = None
        self._alone = False  # nothing is claimed until nothing is held: a suspect is, or waits to be, claimed
        self._held: dict[str, Claim] = {}  # every job whose lease is ours
        self._lost: set[str] = set()  # to be dropped between two steps
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._showing = Showing(self._leases, self._encoder)
        self._finisher = Finisher(self._leases, metrics, self._showing, self._encoder, self._ended, tracing)
        self._work = asyncio.Event()  # there may be a step to make
        self._freed = asyncio.Event()  # a slot was freed, so there may be room to claim
        self._nothing_held = asyncio.Event()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._changed = asyncio.Event()  # a runner came, or one is to go
        self._retiring: frozenset[ModelKey] = frozenset()
        self._keeper = keeper
        for runner in runners:
            self._show(runner)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then finish what runs, hand back what waits, and go."""
        await _first(until_redis_answers(lambda: self._registry.register(self.info)), stop.wait())
        claiming = asyncio.create_task(self._claim_until(stop))
        keeping = [self._keeper.run(self)] if self._keeper else []
        serving = [
            asyncio.create_task(task)
            for task in (self._step_for_ever(), self._keep_leases(), self._heed_notices(), *keeping)
        ]
        try:
            await _first(claiming, *serving)
            await _first(self._drain(), *serving)
        finally:
            tasks = (claiming, *serving)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._finisher.close()
            if self._trace:
                self._trace.close()
            self._encoder.shutdown(wait=False)
            self._device.shutdown(wait=False)

    # Models

    @property
    def runners(self) -> Mapping[ModelKey, ModelRunner]:
        """Whose jobs are claimed now."""
        return self._runners

    async def warm_up(self, runner: ModelRunner) -> None:
        """On the device's thread, in turns with the steps of the others."""
        pieces = runner.warming_up()
        while await asyncio.get_running_loop().run_in_executor(self._device, lambda: next(pieces, _DONE)) is not _DONE:
            pass

    async def serve(self, runner: ModelRunner) -> None:
        """Claim the jobs of one more model version from now on."""
        self._show(runner)
        self._leases.run_with(runner.key, runner.fingerprint)
        self._runners = {**self._runners, runner.key: runner}  # another dict: others may be in the midst of the old
        self._changed.set()
        await self._announce((*self.info.models, runner.info()))

    def retire(self, models: Iterable[ModelKey]) -> None:
        """Stop serving these, and no others, as soon as nothing of theirs is held."""
        self._retiring = frozenset(models)
        if self._retiring:
            self._changed.set()

    async def _drop_retired(self) -> None:
        """Between two claims, so that none is on its way to a runner that is gone."""
        held = {(claim.job.spec.model, claim.job.spec.version) for claim in self._held.values()}
        leaving = [key for key in self._retiring & self._runners.keys() - held if not self._runners[key].jobs]
        if leaving:
            self._runners = {key: runner for key, runner in self._runners.items() if key not in leaving}
            for key in leaving:
                self._metrics.stops_serving(key)
            await self._announce([each for each in self.info.models if (each.name, each.version) in self._runners])

    async def _announce(self, models: Sequence[ModelInfo]) -> None:
        self.info = self.info.model_copy(update={"models": tuple(models)})
        await until_redis_answers(lambda: self._registry.register(self.info))

    def _show(self, runner: ModelRunner) -> None:
        self._metrics.serves(runner.key)
        self._metrics.slots_in_use.labels(*runner.key).set_function(runner.num_slots_in_use)
        self._metrics.steps_available.labels(*runner.key).set(runner.steps_per_s())

    # Claiming

    async def _claim_until(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self._freed.clear()
            self._changed.clear()
            await self._drop_retired()
            try:
                if not await self._claim():
                    await _first(stop.wait(), self._changed.wait(), *self._chances())
            except QueueUnavailable as error:
                logger.warning("cannot claim: %s", error)
                await _first(asyncio.sleep(RETRY_S), stop.wait())

    def _chances(self) -> list[Coroutine[Any, Any, Any]]:
        """What may make a claim worth while: an arrival where there is room, a freed slot where there is none.

        Where there was room and nothing to claim, a freed slot changes nothing; and cutting a blocking read off costs
        its connection.
        """
        open_queues = [key for key, runner in self._runners.items() if runner.room and not self._alone]
        arrival = [self._leases.wait_for_work(open_queues, WAIT_FOR_WORK_S)] if open_queues else []
        return arrival if len(open_queues) == len(self._runners) else [*arrival, self._freed.wait()]

    async def _claim(self) -> bool:
        """Claim as much as every runner has room for. False: there was nothing, or no room."""
        if self._alone and self._held:
            return False
        self._alone = False
        claimed = False
        for runner in self._runners.values():
            if not runner.room:
                continue
            answer = await self._leases.claim(self.info.id, *runner.key, runner.room, idle=not self._held)
            self._alone = answer.alone
            for claim in answer.claims:
                self._held[claim.job.id] = claim
                if claim.job.is_watched:
                    self._showing.watched.add(claim.job.id)
                self._lost.discard(claim.job.id)
                self._nothing_held.clear()
                runner.add(claim)
                self._work.set()
                claimed = True
            self._metrics.claims.labels(*runner.key).inc(len(answer.claims))
            self._metrics.expired.inc(answer.num_expired)
            if self._alone:
                return claimed or not self._held
        return claimed

    # Stepping

    async def _step_for_ever(self) -> None:
        while True:
            for runner in self._runners.values():
                self._drop_lost(runner)
                self._drop_late(runner)
                runner.fill_slots()
            choice = self._choose()
            if isinstance(choice, StepBatch):
                await self._step(self._runners[choice.model], choice)
            else:
                self._work.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._work.wait(), _seconds_until(choice))

    def _choose(self) -> StepBatch | Hold | None:
        terms = (job.claim.job.terms for runner in self._runners.values() for job in runner.jobs.values())
        shares = active_shares((each.tenant, each.weight) for each in terms)
        return self._policy.choose(
            [candidate for runner in self._runners.values() for candidate in runner.candidates(shares)],
            costs={key: runner.costs for key, runner in self._runners.items()},
            pressure=max(
                (runner.num_slots_in_use() / runner.executor.num_slots for runner in self._runners.values()),
                default=0.0,
            ),
            now=time.monotonic(),
        )

    async def _step(self, runner: ModelRunner, batch: StepBatch) -> None:
        started_at = self._step_began_at = time.monotonic()
        for job in runner.jobs_in(batch):
            job.started_at = job.started_at or started_at
        riders = runner.riders(batch) if self._trace else []
        try:
            executed = await asyncio.get_running_loop().run_in_executor(self._device, runner.execute, batch)
        except Exception:
            logger.exception("a step batch of %s %s failed", *runner.key)
            for job in runner.jobs_in(batch):
                self._drop(runner, job.id)
                self._finisher.fail(job, ErrorCode.ENGINE_ERROR, "the engine failed")
            return
        finally:
            self._step_began_at = None
        riding = runner.jobs_in(batch)
        completed, failed = runner.account(batch, executed, started_at)
        self._tell(runner, riding, executed)
        self._metrics.record_step(batch, executed.seconds)
        self._metrics.previews.labels(*runner.key).inc(len(executed.previews))
        if self._trace:
            self._trace.record(batch, riders, started_at, started_at + executed.seconds)
        if executed.result.images or executed.result.failed:
            self._freed.set()
        for job in completed:
            self._finisher.succeed(job)
        for job in failed:
            self._finisher.fail(job, ErrorCode.NON_FINITE, "the model made a number that is not finite")

    def _tell(self, runner: ModelRunner, riding: Sequence[ActiveJob], executed: Executed) -> None:
        for job, preview, pixels in executed.previews:
            if job.id in self._held:
                self._showing.preview(job, preview, pixels)
        for job in riding:
            if job.id in self._showing.watched and job.id in self._held:
                self._showing.progress(job, runner.progress(job))

    def _drop_lost(self, runner: ModelRunner) -> None:
        for job_id in self._lost & runner.jobs.keys():
            logger.info("job %s is no longer ours; its slots are freed", job_id)
            self._lost.discard(job_id)
            self._drop(runner, job_id)

    def _drop_late(self, runner: ModelRunner) -> None:
        for job in runner.late_jobs():
            self._drop(runner, job.id)
            self._finisher.expire(job)

    def _drop(self, runner: ModelRunner, job_id: str) -> None:
        runner.drop(job_id)
        self._freed.set()

    def _ended(self, job: ActiveJob) -> None:
        self._let_go(job.claim)
        self._lost.discard(job.id)

    # Leases

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            self._check_step()
            for runner in self._runners.values():
                self._metrics.steps_available.labels(*runner.key).set(runner.steps_per_s())
            claims = list(self._held.values())
            try:
                await self._registry.heartbeat(self.info.id, self._load())
                lost = await self._leases.renew(self.info.id, claims)
                swept = await self._leases.sweep()
            except QueueUnavailable as error:
                logger.warning("cannot renew leases: %s", error)
                continue
            for claim in claims:
                if claim.job.id in lost:
                    self._lose(claim)
            self._showing.watched.intersection_update(self._held)
            self._metrics.record_sweep(swept)
            if swept.num_requeued or swept.num_poisoned:
                logger.warning("took back %d jobs of lost workers, gave up %d", swept.num_requeued, swept.num_poisoned)

    def _load(self) -> WorkerLoad:
        runners = self._runners.values()
        p50_ms, p99_ms = self._metrics.recent.quantiles_ms(0.5, 0.99)
        return WorkerLoad(
            num_slots=sum(runner.executor.num_slots for runner in runners),
            num_slots_in_use=sum(runner.num_slots_in_use() for runner in runners),
            batch_fill=self._metrics.fill_since_last(),
            images_per_s=self._metrics.recent.images_per_s(),
            p50_ms=p50_ms,
            p99_ms=p99_ms,
        )

    def _check_step(self) -> None:
        """A step that hangs cannot be ended, only its process; others then take over what it held."""
        began_at = self._step_began_at
        if began_at is not None and time.monotonic() - began_at > self._step_timeout_s:
            raise StepTimeout(f"a step batch did not end within MSF_STEP_TIMEOUT_S={self._step_timeout_s:g}")

    async def _heed_notices(self) -> None:
        while True:
            try:
                async for told in notices(self._redis, self.info.id):
                    self._showing.watched.update(told.watched)  # the claim may still be on its way to us
                    for claim in [self._held[job_id] for job_id in told.cancelled if job_id in self._held]:
                        self._lose(claim)
            except QueueUnavailable as error:
                logger.warning("cannot hear of cancellations and watchers: %s", error)
                await asyncio.sleep(RETRY_S)

    def _lose(self, claim: Claim) -> None:
        if self._let_go(claim):
            self._lost.add(claim.job.id)
            runner = self._runners[claim.job.spec.model, claim.job.spec.version]
            self._metrics.jobs.labels(*runner.key, "lost").inc()
            self._work.set()

    async def _drain(self) -> None:
        """Hand back what has not begun, wait for what has, hand back what is late."""
        logger.info("draining: %d jobs are held", len(self._held))
        jobs = [job for runner in self._runners.values() for job in runner.jobs.values()]
        waiting = [job.claim for job in jobs if job.started_at is None]
        self._lost.update(claim.job.id for claim in waiting)
        for claim in waiting:
            await self._release(claim)
        if self._held:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nothing_held.wait(), self._drain_timeout_s)
        for claim in list(self._held.values()):
            await self._release(claim)
        try:
            await self._registry.unregister(self.info.id)
        except QueueUnavailable as error:
            logger.warning("cannot unregister: %s", error)

    async def _release(self, claim: Claim) -> None:
        self._let_go(claim)
        try:
            await self._leases.release(claim)
        except QueueUnavailable as error:
            logger.warning("cannot hand back job %s, its lease will lapse: %s", claim.job.id, error)

    def _let_go(self, claim: Claim) -> bool:
        """False: it was let go before, and if the job is held again, that is another claim."""
        if self._held.get(claim.job.id) is not claim:
            return False
        del self._held[claim.job.id]
        self._showing.forget(claim.job.id)
        if not self._held:
            self._nothing_held.set()
            self._freed.set()
        return True


def _seconds_until(choice: Hold | None) -> float | None:
    return None if choice is None else max(choice.until - time.monotonic(), 0.0)


async def _first(*awaitables: Awaitable[Any]) -> None:
    """Return when one of them is done, raising what it raised. What was not a task before does not go on."""
    tasks = {asyncio.ensure_future(awaitable): awaitable for awaitable in awaitables}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task, awaitable in tasks.items():
            if task is not awaitable:
                task.cancel()
