"""The device's thread: chooses step batches, runs them, and hands over what they bring.

While a batch is computed, the results of the one before are handed over and the next is chosen: that needs step counts,
which are known when a batch is launched, not its results.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from msf_engine.arenas import DecodeRows, StepRows
from msf_engine.executor import StepResult
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError, ModelKey, Preview, Progress, Terms
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import BatchingPolicy, Hold, StepBatch
from msf_worker.active_job import ActiveJob
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.perfetto import PerfettoTrace

logger = logging.getLogger(__name__)

T = TypeVar("T")
PROGRESS_INTERVAL_S = 0.1
HELD_INTERVAL_S = 0.005  # between sums of the held work
RESERVED_SHARE = 0.25  # of the slots, for the first samples of jobs
ENGINE_FAILED = JobError(code=ErrorCode.ENGINE_ERROR, message="the engine failed")
NON_FINITE = JobError(code=ErrorCode.NON_FINITE, message="the model computed a number that is not finite")


@dataclass
class Outcome:
    """Consequences of a step batch for its jobs, and whether the worker should claim more work."""

    completed: list[ActiveJob] = field(default_factory=list)
    failed: list[tuple[ActiveJob, JobError]] = field(default_factory=list)
    expired: list[ActiveJob] = field(default_factory=list)
    previews: list[tuple[ActiveJob, Preview, NDArray[np.uint8]]] = field(default_factory=list)
    progress: list[tuple[ActiveJob, Progress]] = field(default_factory=list)
    wants_work: bool = False

    def __bool__(self) -> bool:
        return bool(self.completed or self.failed or self.expired or self.previews or self.progress or self.wants_work)


class _Model(NamedTuple):
    runner: ModelRunner
    number: int  # in the active set
    jobs_by_slot: dict[int, ActiveJob]


class _Launch(NamedTuple):
    batch: StepBatch
    model: _Model
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
        self._active = ActiveSet()
        self._models: dict[ModelKey, _Model] = {}  # replaced, never changed: other threads read it
        self._jobs: dict[str, ActiveJob] = {}
        self._by_number: dict[int, ActiveJob] = {}
        self._unjoined: dict[str, ActiveJob] = {}  # jobs with samples that wait for slots
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
        entry = self._models.get(model)
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
        self._commands.put(lambda: self._raise_terms(job_id, terms))

    def add_model(self, runner: ModelRunner) -> None:
        """Serve one more model version."""
        self._commands.put(lambda: self._add_model(runner))

    def remove_model(self, key: ModelKey) -> None:
        """Forget a model version; it must hold no job."""
        self._commands.put(lambda: self._remove_model(key))

    def drop_idle_jobs(self) -> list[ActiveJob]:
        """Forget the jobs that no step batch has had a sample of, and return them; in the thread only."""
        idle = [job for job in self._jobs.values() if job.started_at is None]
        for job in idle:
            self._drop(job)
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
            self._fill_slots()
            chosen_at = time.monotonic()
            choice = self._policy.choose(self._active, chosen_at)
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
        model = self._models[batch.model]
        if earlier is not None and not model.runner.executor.queues_batches:
            if not self._is_computed(earlier):
                return  # the batch may have samples of the jobs that failed
            if not self._commands.empty():
                self._finish(earlier)
                return  # jobs that came in the meantime may be more important
        now = time.monotonic()
        numbers = self._active.samples.job[batch.samples]
        jobs = [self._by_number[number] for number in dict.fromkeys(numbers.tolist())]
        self.busy_since = now
        try:
            rows = model.runner.executor.start(batch.slots, batch.bucket)
        except Exception:
            self._fail(batch.model, jobs)
        else:
            self._active.advance(batch.samples, now)
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
            self._take_results(launch.model, result, outcome)
        if self.watched:
            outcome.progress = [
                (job, progress) for job in launch.jobs if (progress := self._due_progress(job, ended_at)) is not None
            ]
        self._hand_over(outcome)
        self._metrics.add_host_seconds("finish", time.monotonic() - ended_at)

    def _take_results(self, model: _Model, result: StepResult, outcome: Outcome) -> None:
        for slot, image in result.images.items():
            job = model.jobs_by_slot.pop(slot, None)
            if job is not None:
                job.images[job.slots.pop(slot)] = image
                if job.is_complete:
                    self._drop(job)
                    outcome.completed.append(job)
        failed = [(model.jobs_by_slot.pop(slot), slot) for slot in result.failed]
        for job, slot in failed:
            del job.slots[slot]  # the executor has freed it
        for job in dict.fromkeys(job for job, _ in failed):
            self._drop(job)
            outcome.failed.append((job, NON_FINITE))

    def _fail(self, model: ModelKey, jobs: list[ActiveJob]) -> None:
        logger.exception("a step batch of %s %s failed", *model)
        failed = [job for job in jobs if self._jobs.get(job.id) is job]
        for job in failed:
            self._drop(job)
        self._hand_over(Outcome(failed=[(job, ENGINE_FAILED) for job in failed]))

    def _due_progress(self, job: ActiveJob, now: float) -> Progress | None:
        """Return the progress of a watched job when a stage begins, when all steps are done, and at intervals."""
        if job.id not in self.watched:
            return None
        if job.is_complete:
            num_steps = job.spec.num_samples * (job.spec.num_steps + 1)
            return job.progress(Stage.DECODE, num_steps, num_steps)
        if self._jobs.get(job.id) is not job:
            return None
        stage, steps_done, num_steps = self._active.progress(job.number)
        last_stage, published_at = job.last_progress
        if stage == last_stage and now - published_at < PROGRESS_INTERVAL_S:
            return None
        job.last_progress = stage, now
        return job.progress(stage, steps_done, num_steps)

    def _show_previews(self, launch: _Launch) -> None:
        """Decode the previews that are due after a batch that was just launched, once it is done."""
        if not any(job.terms.num_previews for job in launch.jobs):
            return
        executor = launch.model.runner.executor
        numbers = {}
        for slot in launch.batch.slots.tolist():
            job, step = launch.model.jobs_by_slot.get(slot), executor.last_stage_step(slot)
            if job is None or step is None or not job.terms.num_previews:  # None: the batch before ended the job
                continue
            if (number := job.due_preview(step)) is not None:
                numbers[slot] = number
        if not numbers:
            return
        try:
            images = executor.preview(tuple(numbers))
        except Exception:
            logger.exception("previews of %s %s failed", *launch.batch.model)
            return
        self._metrics.previews.labels(*launch.batch.model).inc(len(images))
        outcome = Outcome()
        for slot, number in numbers.items():
            job = launch.model.jobs_by_slot[slot]
            outcome.previews.append((job, Preview(index=job.slots[slot], number=number), images[slot]))
        self._hand_over(outcome)

    def _hand_over(self, outcome: Outcome) -> None:
        if self._is_stopping:
            return
        now = time.monotonic()
        if now - self._known_at > HELD_INTERVAL_S or outcome or self._launched is None:
            self._known_s = sum(self._active.held_s(model.number) for model in self._models.values())
            self._known_at = now
        if self._is_short_of_work and self.held_s < self._low_water_s:
            self._is_short_of_work = False
            outcome.wants_work = True
        if outcome:
            self._deliver(outcome)

    # Jobs and slots

    def _ask_for_work(self) -> None:
        self._is_short_of_work = True
        self._hand_over(Outcome())

    def _add(self, job: ActiveJob, work_s: float) -> None:
        self._known_s += work_s  # until the next sum
        self._taken_s += work_s
        key = job.spec.model, job.spec.version
        if (earlier := self._jobs.get(job.id)) is not None:
            self._drop(earlier)
        if key not in self._models:
            self._refuse(job, "the model version is not served any more")
            return
        model = self._models[key]
        pattern = model.runner.pattern(job.spec.num_steps, job.spec.guidance_scale)
        try:
            job.number = self._active.add_job(model.number, job.work, pattern)
        except ValueError as error:
            self._refuse(job, str(error))
            return
        self._jobs[job.id] = self._by_number[job.number] = self._unjoined[job.id] = job

    def _refuse(self, job: ActiveJob, reason: str) -> None:
        logger.error("cannot run job %s of %s:%s: %s", job.id, job.spec.model, job.spec.version, reason)
        self._hand_over(Outcome(failed=[(job, ENGINE_FAILED)]))

    def _drop_id(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            logger.info("dropping job %s, whose lease is gone", job_id)
            self._drop(job)
            self._hand_over(Outcome())

    def _drop(self, job: ActiveJob) -> None:
        """Forget a job and free its slots."""
        model = self._models[job.spec.model, job.spec.version]
        del self._jobs[job.id], self._by_number[job.number]
        self._unjoined.pop(job.id, None)
        self._active.drop_job(job.number)
        for slot in job.slots:
            del model.jobs_by_slot[slot]
            model.runner.executor.leave(slot)
        job.slots.clear()

    def _raise_terms(self, job_id: str, terms: Terms) -> None:
        if (job := self._jobs.get(job_id)) is not None:
            job.terms = job.terms.served_as(terms)
            self._active.raise_terms(job.number, terms.priority, terms.tenant, terms.weight)

    def _fill_slots(self) -> None:
        """Let waiting samples join, by priority and then by arrival; some slots are for the first samples of jobs."""
        if not self._unjoined:
            return
        now = time.monotonic()
        for job in sorted(self._unjoined.values(), key=lambda job: (job.terms.priority.rank, job.arrived_at)):
            model = self._models[job.spec.model, job.spec.version]
            executor = model.runner.executor
            num_free = executor.num_free_slots
            least = 0 if job.slots else min(num_free, 1)
            count = min(len(job.waiting), max(num_free - int(RESERVED_SHARE * executor.capacity), least))
            if count:
                positions = [job.waiting.popleft() for _ in range(count)]
                slots = executor.join([job.sample_request(p) for p in positions], job.noise.rows(positions))
                for slot, position in zip(slots, positions, strict=True):
                    index = job.spec.indices[position]
                    model.jobs_by_slot[slot] = job
                    job.slots[slot] = index
                    self._active.join(job.number, index, slot, now)
            if not job.waiting:
                del self._unjoined[job.id]

    def _expire(self) -> None:
        """End the jobs whose deadline cannot be met any more."""
        late = [self._by_number[number] for number in self._active.late_jobs(time.monotonic())]
        for job in late:
            self._drop(job)
        if late:
            self._hand_over(Outcome(expired=late))

    # Models

    def _add_model(self, runner: ModelRunner) -> None:
        model = _Model(runner, self._active.add_model(runner.key, runner.costs), {})
        self._models = {**self._models, runner.key: model}

    def _remove_model(self, key: ModelKey) -> None:
        self._settle()
        self._active.remove_model(self._models[key].number)
        self._models = {other: model for other, model in self._models.items() if other != key}
