"""The device's thread: chooses step batches, runs them, and hands over what they bring.

While a batch is computed, the results of the one before are handed over and the next is chosen: that needs step counts,
which are known when a batch is launched, not its results. The states of the thread are in this one file, long as it is.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple, TypeVar

from msf_engine.arenas import DecodeRows, StepRows
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError, ModelKey, Terms
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import BatchingPolicy, Hold, StepBatch
from msf_worker.active_job import ActiveJob
from msf_worker.active_jobs import ActiveJobs, HostedModel
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.outcome import Outcome, due_previews, due_progress, preview_outcome
from msf_worker.perfetto import PerfettoTrace

logger = logging.getLogger(__name__)

T = TypeVar("T")
HELD_INTERVAL_S = 0.005  # between sums of the held work
ENGINE_FAILED = JobError(code=ErrorCode.ENGINE_ERROR, message="the engine failed")
NON_FINITE = JobError(code=ErrorCode.NON_FINITE, message="the model computed a number that is not finite")


class _Launch(NamedTuple):
    batch: StepBatch
    model: HostedModel
    rows: StepRows | DecodeRows
    jobs: list[ActiveJob]
    started_at: float


class DeviceLoop:
    """Runs the samples of all models in one thread, from which `deliver` is called with each outcome.

    Other threads call `add`, `drop`, `raise_terms`, `add_model`, `remove_model` and `call`, which take effect between
    two step batches, and read `busy_since`, `held_s` and `num_active`. One thread calls `add`.
    """

    def __init__(
        self,
        policy: BatchingPolicy,
        metrics: WorkerMetrics,
        deliver: Callable[[Outcome], None],
        *,
        low_water_s: float,
        trace: PerfettoTrace | None = None,
    ) -> None:
        self.busy_since: float | None = None  # when the batch under way was launched
        self.watched: frozenset[str] | set[str] = frozenset()  # ids of jobs whose progress is handed over
        self._policy = policy
        self._metrics = metrics
        self._deliver = deliver
        self._low_water_s = low_water_s
        self._trace = trace
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs = ActiveJobs()
        self._launched: _Launch | None = None
        self._added_s = self._taken_s = self._known_s = 0.0  # device seconds of work
        self._known_at = 0.0
        self._is_short_of_work = False  # outcomes below `low_water_s` ask for more
        self._is_stopping = False
        self.ended: Future[None] = Future()  # has the error, if the thread ends by one
        self._thread = threading.Thread(target=self._run, name="device")

    # Called by other threads

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after the batch under way; nothing is handed over any more."""
        self._is_stopping = True
        self._commands.put(lambda: None)

    def num_active(self, model: ModelKey) -> int:
        """Return how many samples of a model have a slot."""
        entry = self._jobs.models.get(model)
        return len(entry.jobs_by_slot) if entry is not None else 0

    @property
    def held_s(self) -> float:
        """Return the device seconds of the work that was added and is not done."""
        return self._known_s + self._added_s - self._taken_s

    def add(self, job: ActiveJob, work_s: float) -> None:
        """Take a job in, which is estimated to take `work_s` on the device."""
        self._added_s += work_s
        self._commands.put(lambda: self._add(job, work_s))

    def ask_for_work(self) -> None:
        """Deliver an outcome that wants work as soon as less than `low_water_s` is held."""
        self._commands.put(self._ask_for_work)

    def drop(self, job_id: str) -> None:
        """Forget a job; other jobs in its step batches are not affected."""
        self._commands.put(lambda: self._drop_id(job_id))

    def raise_terms(self, job_id: str, terms: Terms) -> None:
        """Serve a job as one with these terms would be."""
        self._commands.put(lambda: self._jobs.raise_terms(job_id, terms))

    def add_model(self, runner: ModelRunner) -> None:
        """Serve one more model version."""
        self._commands.put(lambda: self._jobs.add_model(runner))

    def remove_model(self, key: ModelKey) -> None:
        """Forget a model version; it must hold no job."""
        self._commands.put(lambda: self._remove_model(key))

    def drop_idle_jobs(self) -> list[ActiveJob]:
        """Forget the jobs that no step batch has had a sample of, and return them; in the thread only."""
        idle = self._jobs.idle()
        for job in idle:
            self._jobs.drop(job)
        return idle

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the thread, between two step batches."""
        future: Future[T] = Future()

        def command() -> None:
            self._settle()
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._commands.put(command)
        return future

    # The thread

    def _run(self) -> None:
        self.ended.set_running_or_notify_cancel()  # those who wait for it may give up, but not cancel it
        try:
            self._run_until_stopped()
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _run_until_stopped(self) -> None:
        while not self._is_stopping:
            self._take_commands()
            self._expire()
            self._jobs.fill_slots(time.monotonic())
            chosen_at = time.monotonic()
            choice = self._policy.choose(self._jobs.active, chosen_at)
            self._metrics.add_host_seconds("choose", time.monotonic() - chosen_at)
            if isinstance(choice, StepBatch):
                self._launch(choice)
            elif self._launched is not None:
                self._settle()
            else:
                self._wait_for_command(choice)
        if self._launched is not None:
            self._is_computed(self._launched)

    def _take_commands(self) -> None:
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                return
            command()

    def _wait_for_command(self, hold: Hold | None) -> None:
        self.busy_since = None  # batches that fail are not settled
        timeout_s = None if hold is None else max(hold.until - time.monotonic(), 0.0)
        try:
            self._commands.get(timeout=timeout_s)()
        except queue.Empty:
            return

    def _launch(self, batch: StepBatch) -> None:
        """Start a batch, and hand over the results of the one before while it is computed."""
        earlier, self._launched = self._launched, None
        model = self._jobs.models[batch.model]
        if earlier is not None and not model.runner.executor.queues_batches:
            if not self._is_computed(earlier):
                return  # the batch may have samples of the jobs that failed
            if not self._commands.empty():
                self._finish(earlier)
                return  # jobs that came in the meantime may be more important
        now = time.monotonic()
        jobs = self._jobs.of_samples(batch.samples)
        self.busy_since = now
        try:
            rows = model.runner.executor.start(batch.slots, batch.bucket)
        except Exception:
            self._fail(batch.model, jobs)
        else:
            self._jobs.active.advance(batch.samples, now)
            self._launched = _Launch(batch, model, rows, jobs, now)
            self._metrics.add_host_seconds("launch", time.monotonic() - now)
        if earlier is not None:
            self._finish(earlier)
        if self._launched is not None and batch.stage is not Stage.DECODE:
            self._show_previews(self._launched)

    def _settle(self) -> None:
        """Wait for the batch under way, and hand over its results."""
        earlier, self._launched = self._launched, None
        if earlier is not None and self._is_computed(earlier):
            self._finish(earlier)
        self.busy_since = None

    def _is_computed(self, launch: _Launch) -> bool:
        """Wait for a batch. Returns False if it fails, as do its jobs then."""
        try:
            launch.model.runner.executor.wait(launch.rows)
        except Exception:
            self._fail(launch.batch.model, launch.jobs)
            return False
        return True

    def _finish(self, launch: _Launch) -> None:
        batch, ended_at = launch.batch, time.monotonic()
        try:
            result = launch.model.runner.executor.finish(launch.rows)
        except Exception:
            self._fail(batch.model, launch.jobs)
            return
        seconds = launch.rows.seconds
        launch.model.runner.costs.observe(batch.stage, batch.bucket, seconds)
        self._metrics.record_step(batch, seconds)
        if self._trace is not None:
            self._trace.record(batch, [job.id for job in launch.jobs], launch.started_at, seconds)
        outcome = Outcome()
        for job in launch.jobs:
            if job.started_at is None:
                job.started_at = launch.started_at
            job.record_step(batch.stage, launch.started_at, launch.started_at + seconds)
        if result.images or result.failed:
            ended = self._jobs.take_results(launch.model, result)
            outcome.completed = ended.completed
            outcome.failed = [(job, NON_FINITE) for job in ended.failed]
        if self.watched:
            watched = [job for job in launch.jobs if job.id in self.watched]
            reports = ((job, due_progress(self._jobs, job, ended_at)) for job in watched)
            outcome.progress = [(job, progress) for job, progress in reports if progress is not None]
        self._hand_over(outcome)
        self._metrics.add_host_seconds("finish", time.monotonic() - ended_at)

    def _fail(self, model: ModelKey, jobs: list[ActiveJob]) -> None:
        logger.exception("a step batch of %s %s failed", *model)
        failed = [job for job in jobs if self._jobs.holds(job)]
        for job in failed:
            self._jobs.drop(job)
        self._hand_over(Outcome(failed=[(job, ENGINE_FAILED) for job in failed]))

    def _show_previews(self, launch: _Launch) -> None:
        """Decode the previews that are due after a batch that was just launched, once it is done."""
        if not any(job.terms.num_previews for job in launch.jobs):
            return
        numbers = due_previews(launch.model, launch.batch.slots.tolist())
        if not numbers:
            return
        try:
            outcome = preview_outcome(launch.model, numbers)
        except Exception:
            logger.exception("previews of %s %s failed", *launch.batch.model)
            return
        self._metrics.previews.labels(*launch.batch.model).inc(len(numbers))
        self._hand_over(outcome)

    def _hand_over(self, outcome: Outcome) -> None:
        if self._is_stopping:
            return
        now = time.monotonic()
        if now - self._known_at > HELD_INTERVAL_S or outcome or self._launched is None:
            self._known_s = self._jobs.held_s
            self._known_at = now
        if self._is_short_of_work and self.held_s < self._low_water_s:
            self._is_short_of_work = False
            outcome.wants_work = True
        if outcome:
            self._deliver(outcome)

    def _ask_for_work(self) -> None:
        self._is_short_of_work = True
        self._hand_over(Outcome())

    def _add(self, job: ActiveJob, work_s: float) -> None:
        self._known_s += work_s  # until the next sum
        self._taken_s += work_s
        try:
            self._jobs.add(job)
        except ValueError as error:
            logger.error("cannot run job %s of %s:%s: %s", job.id, job.spec.model, job.spec.version, error)
            self._hand_over(Outcome(failed=[(job, ENGINE_FAILED)]))

    def _drop_id(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            logger.info("dropping job %s, whose lease is gone", job_id)
            self._jobs.drop(job)
            self._hand_over(Outcome())

    def _expire(self) -> None:
        """End the jobs whose deadline cannot be met any more."""
        late = self._jobs.late(time.monotonic())
        for job in late:
            self._jobs.drop(job)
        if late:
            self._hand_over(Outcome(expired=late))

    def _remove_model(self, key: ModelKey) -> None:
        self._settle()
        self._jobs.remove_model(key)
