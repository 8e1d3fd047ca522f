"""The simulated service: jobs arrive, Redis queues them one transition at a time, workers step their samples.

Real: the batching policy and its active set, the costs of step batches (measured on a device), whole claims bounded by
time, one worker woken per arrival. Simplified: one model, claims without ageing, a step cost that is always the mean,
no faults.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count

from msf_cli.simulation.queue import SimulatedJob, SimulatedQueue
from msf_scheduler.active_set import ActiveSet
from msf_scheduler.step_batching import BatchingPolicy, Hold, StepLevelPolicy
from msf_scheduler.step_costs import StepCosts
from msf_scheduler.tenant_shares import ActiveWork
from msf_scheduler.tunables import HELD_S

MODEL = ("simulated", "1")


@dataclass(frozen=True)
class Hardware:
    """Durations in seconds. `transition_s`: one Redis script (admit, claim or finish)."""

    costs: StepCosts
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
    """A claimed job of a worker."""

    number: int
    spec: SimulatedJob
    num_unfinished: int


class _Worker:
    def __init__(self, policy: BatchingPolicy, costs: StepCosts) -> None:
        self.policy = policy
        self.active = ActiveSet()
        self.model = self.active.add_model(MODEL, costs)
        self.jobs: dict[int, _Job] = {}  # by number in the active set
        self.is_stepping = False
        self.is_full = False  # it waits for capacity, or for terms that it does not hold
        self.is_draining = False

    @property
    def has_capacity(self) -> bool:
        return self.active.held_s(self.model) < HELD_S

    def add(self, number: int, spec: SimulatedJob, now: float) -> None:
        work = ActiveWork(str(number), spec.arrived_at, spec.num_samples, spec.priority, spec.tenant)
        job = self.active.add_job(self.model, work, spec.pattern)
        self.jobs[job] = _Job(number, spec, spec.num_samples)
        for index in range(spec.num_samples):
            self.active.join(job, index, index, now)


class SimulatedCluster:
    """One simulation run; `run` may be called once."""

    def __init__(
        self, hardware: Hardware, num_workers: int, policy: Callable[[], BatchingPolicy] = StepLevelPolicy
    ) -> None:
        self._hardware = hardware
        self._policy = policy
        self._workers = [_Worker(policy(), hardware.costs) for _ in range(num_workers)]
        self._idle: deque[_Worker] = deque(self._workers)  # with capacity, longest idle first
        self._full: list[_Worker] = []  # holding `HELD_S` of work
        self.queue = SimulatedQueue()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.now = 0.0
        self._redis_free_at = 0.0
        self._redis_busy_s = 0.0
        self._device_busy_s = 0.0
        self._finished_at: dict[int, float] = {}

    def start_worker(self) -> None:
        """Add a worker that has loaded its plans."""
        worker = _Worker(self._policy(), self._hardware.costs)
        self._workers.append(worker)
        self._start_claim(worker)

    def drain_worker(self) -> None:
        """Have the newest worker claim no more; it finishes what it holds."""
        worker = self._workers.pop()
        worker.is_draining = True
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.is_full:
            self._full.remove(worker)
            worker.is_full = False

    def run(self, jobs: Iterable[SimulatedJob]) -> SimulationResult:
        """Simulate `jobs`, in the order of their arrival, until the last has finished."""
        specs = list(jobs)
        for number, spec in enumerate(specs):
            self.at(spec.arrived_at, partial(self._transition, partial(self._admit, number, spec)))
        while self._events:
            self.now, _, callback = heapq.heappop(self._events)
            callback()
        return SimulationResult(
            latencies_s=[self._finished_at[number] - spec.arrived_at for number, spec in enumerate(specs)],
            duration_s=max(self._finished_at.values(), default=0.0),
            num_images=sum(spec.num_samples for spec in specs),
            device_busy_s=self._device_busy_s,
            redis_busy_s=self._redis_busy_s,
            num_workers=len(self._workers),
        )

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Call `callback` at the simulated time `when`."""
        heapq.heappush(self._events, (when, next(self._order), callback))

    def _transition(self, callback: Callable[[], None]) -> None:
        """Call `callback` after one Redis script; Redis runs one at a time."""
        self._redis_free_at = max(self._redis_free_at, self.now) + self._hardware.transition_s
        self._redis_busy_s += self._hardware.transition_s
        self.at(self._redis_free_at, callback)

    def _admit(self, number: int, spec: SimulatedJob) -> None:
        self.queue.push(number, spec)
        self._wake_one()

    def _wake_one(self) -> None:
        """Let a worker claim that has capacity, or else one that holds nothing of a waiting priority and tenant."""
        terms = self.queue.terms()
        if terms and self._idle:
            self._start_claim(self._idle.popleft())
        elif terms:
            worker = next((worker for worker in self._full if terms - worker.active.held_terms()), None)
            if worker:
                self._full.remove(worker)
                self._start_claim(worker)

    def _start_claim(self, worker: _Worker) -> None:
        worker.is_full = False
        self._transition(lambda: self._claim(worker))

    def _claim(self, worker: _Worker) -> None:
        """Claim about `HELD_S` of work, and always a job of a priority and tenant that the worker holds none of."""
        if worker.is_draining:
            self._wake_one()
            return
        has_claimed = False
        while entry := self.queue.pop(exclude=() if worker.has_capacity else worker.active.held_terms()):
            worker.add(*entry, self.now)
            has_claimed = True
        self._step(worker)
        worker.is_full = not worker.has_capacity
        if worker.is_full:
            self._full.append(worker)
        elif has_claimed:
            self._start_claim(worker)
        else:
            self._idle.append(worker)
        self._wake_one()

    def _step(self, worker: _Worker) -> None:
        if worker.is_stepping:
            return
        choice = worker.policy.choose(worker.active, self.now)
        if isinstance(choice, Hold):
            self.at(max(choice.until, self.now), lambda: self._step(worker))
        elif choice is not None:
            step_s = self._hardware.costs.mean_s(choice.stage, choice.bucket)
            self._device_busy_s += step_s
            worker.is_stepping = True
            is_last = choice.stage is self._hardware.costs.stages[-1]
            finished = worker.active.samples.job[choice.samples].tolist() if is_last else []
            worker.active.advance(choice.samples, self.now)
            self.at(self.now + step_s + self._hardware.step_overhead_s, lambda: self._end_step(worker, finished))

    def _end_step(self, worker: _Worker, finished: list[int]) -> None:
        """Continue after a step batch; `finished` has the job of each sample that it decoded."""
        worker.is_stepping = False
        for job in finished:
            self._finish_sample(worker, job)
        if worker.is_full and worker.has_capacity:
            self._full.remove(worker)
            self._start_claim(worker)
        self._step(worker)

    def _finish_sample(self, worker: _Worker, number: int) -> None:
        job = worker.jobs[number]
        job.num_unfinished -= 1
        if not job.num_unfinished:
            del worker.jobs[number]
            worker.active.drop_job(number)
            self.at(self.now + self._hardware.job_overhead_s, partial(self._transition, partial(self._finish, job)))

    def _finish(self, job: _Job) -> None:
        assert job.number not in self._finished_at
        self._finished_at[job.number] = self.now
