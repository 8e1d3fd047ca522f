"""The simulated service: jobs arrive, Redis queues them one transition after the other, workers step their samples.

What is real: the batching policy, the costs of step batches (measured on a device), slots, whole claims, one worker
woken for each arrival. What is simplified: one model, one tenant and one priority (so claims go by age), a cost that is
always the mean, no faults.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from msf_scheduler.step_batching import ActiveWork, BatchingPolicy, Candidate, Hold, StepBatch, StepLevel
from msf_scheduler.step_costs import Stage, StepCosts, Work

MODEL = ("simulated", "1")


@dataclass(frozen=True)
class Request:
    """One job to be. `arrived_at` in seconds from the start."""

    arrived_at: float
    num_samples: int
    work: Work


@dataclass(frozen=True)
class Hardware:
    """What everything takes, in seconds. `transition_s`: one of Redis's scripts, admit, claim or finish."""

    costs: StepCosts
    num_slots: int = 32
    step_overhead_s: float = 0.0  # between two step batches
    job_overhead_s: float = 0.0  # of a job beside its steps, out of the device's way: HTTP, encoding
    transition_s: float = 0.0


@dataclass
class Outcome:
    """`latencies_s` in the order of the requests; busy times are totals over all workers, and of Redis."""

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
        """Of the devices, 0 to 1."""
        return self.device_busy_s / (self.num_workers * self.duration_s)

    @property
    def redis_utilisation(self) -> float:
        return self.redis_busy_s / self.duration_s


@dataclass
class _Job:
    number: int
    request: Request
    num_left: int
    num_unslotted: int


@dataclass
class _Sample:
    job: _Job
    index: int
    num_base_steps: int
    num_residual_steps: int
    base_guided: bool
    residual_guided: bool
    ridden_at: float

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
    def room(self) -> int:
        return len(self.free) - sum(job.num_unslotted for job in self.jobs)


class Cluster:
    """One run: give it requests in the order of their arrival, and call `run` once."""

    def __init__(self, hardware: Hardware, num_workers: int, policy: Callable[[], BatchingPolicy] = StepLevel) -> None:
        self._hardware = hardware
        self._workers = [_Worker(policy(), free=list(range(hardware.num_slots))) for _ in range(num_workers)]
        self._waiting: deque[_Worker] = deque(self._workers)  # for work, the longest first
        self._queue: deque[_Job] = deque()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now = 0.0
        self._redis_free_at = 0.0
        self._redis_busy_s = 0.0
        self._device_busy_s = 0.0
        self._ended: dict[int, float] = {}

    def run(self, requests: Iterable[Request]) -> Outcome:
        """Until the last job has ended."""
        jobs = [_Job(number, each, each.num_samples, each.num_samples) for number, each in enumerate(requests)]
        for job in jobs:
            self._at(job.request.arrived_at, partial(self._transition, partial(self._admitted, job)))
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return Outcome(
            latencies_s=[self._ended[job.number] - job.request.arrived_at for job in jobs],
            duration_s=max(self._ended.values(), default=0.0),
            num_images=sum(job.request.num_samples for job in jobs),
            device_busy_s=self._device_busy_s,
            redis_busy_s=self._redis_busy_s,
            num_workers=len(self._workers),
        )

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _transition(self, then: Callable[[], None]) -> None:
        """Redis does one thing after the other."""
        self._redis_free_at = max(self._redis_free_at, self._now) + self._hardware.transition_s
        self._redis_busy_s += self._hardware.transition_s
        self._at(self._redis_free_at, then)

    def _admitted(self, job: _Job) -> None:
        self._queue.append(job)
        self._wake_one()

    def _wake_one(self) -> None:
        if self._queue and self._waiting:
            self._claim(self._waiting.popleft())

    def _claim(self, worker: _Worker) -> None:
        worker.is_claiming = True
        self._transition(lambda: self._claimed(worker))

    def _claimed(self, worker: _Worker) -> None:
        worker.is_claiming = False
        room, found = worker.room, False
        while self._queue and room > 0:
            job = self._queue.popleft()
            worker.jobs.append(job)
            room -= job.request.num_samples
            found = True
        self._fill(worker)
        self._step(worker)
        if found and worker.room > 0:
            self._claim(worker)
        elif worker.room > 0:
            self._waiting.append(worker)
        self._wake_one()

    def _fill(self, worker: _Worker) -> None:
        for job in worker.jobs:
            while job.num_unslotted and worker.free:
                index = job.request.num_samples - job.num_unslotted
                job.num_unslotted -= 1
                worker.slots[worker.free.pop()] = _Sample(job, index, *job.request.work, ridden_at=self._now)

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
            seconds = self._hardware.costs.mean_s(choice.stage, choice.guided, choice.bucket)
            self._device_busy_s += seconds
            worker.is_stepping = True
            self._at(self._now + seconds + self._hardware.step_overhead_s, lambda: self._stepped(worker, choice))

    def _candidates(self, worker: _Worker) -> list[Candidate]:
        costs = self._hardware.costs
        left_s = {job.number: job.num_unslotted * costs.work_s(job.request.work) for job in worker.jobs}
        for sample in worker.slots.values():
            left_s[sample.job.number] += costs.work_s(sample.work)
        jobs = {
            job.number: ActiveWork(
                str(job.number),
                job.request.arrived_at,
                whole_s=job.request.num_samples * costs.work_s(job.request.work),
                left_s=left_s[job.number],
                share=1 / len(worker.jobs),
            )
            for job in worker.jobs
        }
        return [
            Candidate(
                slot,
                sample.index,
                jobs[sample.job.number],
                MODEL,
                sample.stage,
                sample.guided,
                sample.ridden_at,
            )
            for slot, sample in worker.slots.items()
        ]

    def _stepped(self, worker: _Worker, batch: StepBatch) -> None:
        worker.is_stepping = False
        for slot in batch.slots:
            sample = worker.slots[slot]
            sample.ridden_at = self._now
            if batch.stage is Stage.BASE:
                sample.num_base_steps -= 1
            elif batch.stage is Stage.RESIDUAL:
                sample.num_residual_steps -= 1
            else:
                self._decoded(worker, slot)
        self._fill(worker)
        if batch.stage is Stage.DECODE and worker.room > 0 and not worker.is_claiming and worker not in self._waiting:
            self._claim(worker)
        self._step(worker)

    def _decoded(self, worker: _Worker, slot: int) -> None:
        job = worker.slots.pop(slot).job
        worker.free.append(slot)
        job.num_left -= 1
        if not job.num_left:
            worker.jobs.remove(job)
            self._at(self._now + self._hardware.job_overhead_s, lambda: self._transition(lambda: self._finished(job)))

    def _finished(self, job: _Job) -> None:
        assert job.number not in self._ended
        self._ended[job.number] = self._now
