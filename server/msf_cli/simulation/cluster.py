"""The simulated service: jobs arrive, Redis queues them one transition at a time, workers step their samples.

Real: the batching policy, the costs of step batches (measured on a device), slots, whole claims, one worker woken per
arrival. Simplified: one model, one tenant and one priority (so claims go by age), a step cost that is always the mean,
no faults.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import ActiveWork, BatchingPolicy, Candidate, Hold, StepBatch, StepLevelPolicy
from msf_scheduler.step_costs import StepCosts, Work

MODEL = ("simulated", "1")


@dataclass(frozen=True)
class SimulatedJob:
    """One job to come. `arrived_at` in seconds from the start."""

    arrived_at: float
    num_samples: int
    work: Work


@dataclass(frozen=True)
class Hardware:
    """Durations in seconds. `transition_s`: one Redis script (admit, claim or finish)."""

    costs: StepCosts
    num_slots: int = 32
    step_overhead_s: float = 0.0  # between two step batches
    job_overhead_s: float = 0.0  # off the device: HTTP, encoding
    transition_s: float = 0.0


@dataclass
class SimulationResult:
    """`latencies_s` in the order of the jobs; busy times are totals over all workers, and of Redis."""

    latencies_s: list[float]
    duration_s: float
    num_images: int
    device_busy_s: float
    redis_busy_s: float
    num_workers: int

    @property
    def images_per_s(self) -> float:
        return self.num_images / self.duration_s

    @property
    def utilisation(self) -> float:
        """Mean share of the time that a device is busy, 0 to 1."""
        return self.device_busy_s / (self.num_workers * self.duration_s)

    @property
    def redis_utilisation(self) -> float:
        return self.redis_busy_s / self.duration_s


@dataclass
class _Job:
    number: int
    spec: SimulatedJob
    num_unfinished: int
    num_unslotted: int


@dataclass
class _Sample:
    job: _Job
    index: int
    num_base_steps: int
    num_residual_steps: int
    base_guided: bool
    residual_guided: bool
    stepped_at: float

    @property
    def stage(self) -> Stage:
        if self.num_base_steps:
            return Stage.BASE
        return Stage.RESIDUAL if self.num_residual_steps else Stage.DECODE

    @property
    def guided(self) -> bool:
        return {Stage.BASE: self.base_guided, Stage.RESIDUAL: self.residual_guided}.get(self.stage, False)

    @property
    def work(self) -> Work:
        return Work(self.num_base_steps, self.num_residual_steps, self.base_guided, self.residual_guided)


@dataclass
class _Worker:
    policy: BatchingPolicy
    jobs: list[_Job] = field(default_factory=list)
    slots: dict[int, _Sample] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    is_stepping: bool = False
    is_claiming: bool = False

    @property
    def capacity(self) -> int:
        return len(self.free) - sum(job.num_unslotted for job in self.jobs)


class SimulatedCluster:
    """One simulation run; `run` may be called once."""

    def __init__(
        self, hardware: Hardware, num_workers: int, policy: Callable[[], BatchingPolicy] = StepLevelPolicy
    ) -> None:
        self._hardware = hardware
        self._workers = [_Worker(policy(), free=list(range(hardware.num_slots))) for _ in range(num_workers)]
        self._idle: deque[_Worker] = deque(self._workers)  # longest idle first
        self._queue: deque[_Job] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now = 0.0
        self._redis_free_at = 0.0
        self._redis_busy_s = 0.0
        self._device_busy_s = 0.0
        self._finished_at: dict[int, float] = {}

    def run(self, jobs: Iterable[SimulatedJob]) -> SimulationResult:
        """Simulate `jobs`, in the order of their arrival, until the last has finished."""
        queued = [_Job(number, job, job.num_samples, job.num_samples) for number, job in enumerate(jobs)]
        for entry in queued:
            self._at(entry.spec.arrived_at, partial(self._transition, partial(self._admit, entry)))
        while self._events:
            self._now, _, callback = heapq.heappop(self._events)
            callback()
        return SimulationResult(
            latencies_s=[self._finished_at[entry.number] - entry.spec.arrived_at for entry in queued],
            duration_s=max(self._finished_at.values(), default=0.0),
            num_images=sum(entry.spec.num_samples for entry in queued),
            device_busy_s=self._device_busy_s,
            redis_busy_s=self._redis_busy_s,
            num_workers=len(self._workers),
        )

    def _at(self, when: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), callback))

    def _transition(self, callback: Callable[[], None]) -> None:
        """Call `callback` after one Redis script; Redis runs one at a time."""
        self._redis_free_at = max(self._redis_free_at, self._now) + self._hardware.transition_s
        self._redis_busy_s += self._hardware.transition_s
        self._at(self._redis_free_at, callback)

    def _admit(self, job: _Job) -> None:
        self._queue.append(job)
        self._wake_one()

    def _wake_one(self) -> None:
        if self._queue and self._idle:
            self._start_claim(self._idle.popleft())

    def _start_claim(self, worker: _Worker) -> None:
        worker.is_claiming = True
        self._transition(lambda: self._claim(worker))

    def _claim(self, worker: _Worker) -> None:
        worker.is_claiming = False
        num_jobs = len(worker.jobs)
        while self._queue and worker.capacity > 0:
            worker.jobs.append(self._queue.popleft())
        has_claimed = len(worker.jobs) > num_jobs
        self._fill_slots(worker)
        self._step(worker)
        if worker.capacity > 0:
            if has_claimed:
                self._start_claim(worker)
            else:
                self._idle.append(worker)
        self._wake_one()

    def _fill_slots(self, worker: _Worker) -> None:
        for job in worker.jobs:
            while job.num_unslotted and worker.free:
                index = job.spec.num_samples - job.num_unslotted
                job.num_unslotted -= 1
                worker.slots[worker.free.pop()] = _Sample(job, index, *job.spec.work, stepped_at=self._now)

    def _step(self, worker: _Worker) -> None:
        if worker.is_stepping or not worker.slots:
            return
        choice = worker.policy.choose(
            self._candidates(worker),
            costs={MODEL: self._hardware.costs},
            pressure=len(worker.slots) / self._hardware.num_slots,
            now=self._now,
        )
        if isinstance(choice, Hold):
            self._at(max(choice.until, self._now), lambda: self._step(worker))
        elif choice is not None:
            step_s = self._hardware.costs.mean_s(choice.stage, choice.guided, choice.bucket)
            self._device_busy_s += step_s
            worker.is_stepping = True
            self._at(self._now + step_s + self._hardware.step_overhead_s, lambda: self._end_step(worker, choice))

    def _candidates(self, worker: _Worker) -> list[Candidate]:
        costs = self._hardware.costs
        remaining_s = {job.number: job.num_unslotted * costs.work_s(job.spec.work) for job in worker.jobs}
        for sample in worker.slots.values():
            remaining_s[sample.job.number] += costs.work_s(sample.work)
        jobs = {
            job.number: ActiveWork(
                str(job.number),
                job.spec.arrived_at,
                total_s=job.spec.num_samples * costs.work_s(job.spec.work),
                remaining_s=remaining_s[job.number],
                share=1 / len(worker.jobs),
            )
            for job in worker.jobs
        }
        return [
            Candidate(slot, s.index, jobs[s.job.number], MODEL, s.stage, s.guided, s.stepped_at)
            for slot, s in worker.slots.items()
        ]

    def _end_step(self, worker: _Worker, batch: StepBatch) -> None:
        worker.is_stepping = False
        for slot in batch.slots:
            sample = worker.slots[slot]
            sample.stepped_at = self._now
            if batch.stage is Stage.BASE:
                sample.num_base_steps -= 1
            elif batch.stage is Stage.RESIDUAL:
                sample.num_residual_steps -= 1
            else:
                self._free_slot(worker, slot)
        self._fill_slots(worker)
        is_waiting = worker.is_claiming or worker in self._idle
        if batch.stage is Stage.DECODE and worker.capacity > 0 and not is_waiting:
            self._start_claim(worker)
        self._step(worker)

    def _free_slot(self, worker: _Worker, slot: int) -> None:
        job = worker.slots.pop(slot).job
        worker.free.append(slot)
        job.num_unfinished -= 1
        if not job.num_unfinished:
            worker.jobs.remove(job)
            self._at(self._now + self._hardware.job_overhead_s, partial(self._transition, partial(self._finish, job)))

    def _finish(self, job: _Job) -> None:
        assert job.number not in self._finished_at
        self._finished_at[job.number] = self._now
