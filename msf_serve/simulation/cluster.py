"""The simulated service: jobs arrive, one Redis queues them, workers claim and step them.

What is real: the batching policy, the costs of step batches (measured on a device), slots, whole claims in the order
of the real queue, one worker woken for each arrival, the workers' regular calls. What is simplified: one model, a cost
that is always the mean, no faults, and Redis as a server that does one script after the other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from math import inf

from msf_serve.scheduler.policy import BatchingPolicy, Hold, StepBatch, StepLevel
from msf_serve.simulation.jobs import Hardware, Job, Outcome, Request
from msf_serve.simulation.lanes import Lanes
from msf_serve.simulation.worker import Worker

UPKEEP_EVERY_S = 5.0  # a third of MSF_LEASE_S
UPKEEP_TRANSITIONS = 3  # heartbeat, renewal, sweep


class Cluster:
    """One run: make one, call `run` once."""

    def __init__(self, hardware: Hardware, num_workers: int, policy: Callable[[], BatchingPolicy] = StepLevel) -> None:
        self._hardware = hardware
        self._workers = [Worker(hardware, policy()) for _ in range(num_workers)]
        self._waiting = deque(self._workers)  # for work, the longest first
        self._lanes = Lanes()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now = 0.0
        self._redis_free_at = 0.0
        self._ended: dict[str, tuple[float, int]] = {}  # job id -> when, and images
        self._redis_busy_s = self._device_busy_s = 0.0
        self._num_riders = self._num_rows = 0

    def run(self, requests: Iterable[Request]) -> Outcome:
        """Until the last job has ended."""
        arrivals = {str(number): request for number, request in enumerate(requests)}
        for job_id, request in arrivals.items():
            self._at(request.arrived_at, partial(self._transition, partial(self._admitted, job_id, request)))
        for number in range(len(self._workers)):
            self._at(UPKEEP_EVERY_S * (number + 1) / len(self._workers), self._upkeep)
        while len(self._ended) < len(arrivals):
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return Outcome(
            latencies_s=tuple(self._latency_s(job_id, request) for job_id, request in arrivals.items()),
            duration_s=self._now,
            num_images=sum(num_images for _, num_images in self._ended.values()),
            num_workers=len(self._workers),
            num_riders=self._num_riders,
            num_rows=self._num_rows,
            device_busy_s=self._device_busy_s,
            redis_busy_s=self._redis_busy_s,
        )

    def _latency_s(self, job_id: str, request: Request) -> float:
        ended_at, num_images = self._ended[job_id]
        return ended_at - request.arrived_at if num_images else inf

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    # Redis

    def _transition(self, then: Callable[[], None], number: int = 1) -> None:
        seconds = number * self._hardware.transition_s
        self._redis_free_at = max(self._redis_free_at, self._now) + seconds
        self._redis_busy_s += seconds
        self._at(self._redis_free_at, then)

    def _upkeep(self) -> None:
        """What a worker calls whether there is work or not."""
        self._transition(lambda: None, UPKEEP_TRANSITIONS)
        self._at(self._now + UPKEEP_EVERY_S, self._upkeep)

    def _admitted(self, job_id: str, request: Request) -> None:
        job = Job.of(job_id, request, self._now, self._hardware.costs)
        if job.is_late(self._now):
            self._end(job, 0)
        else:
            self._lanes.join(job, self._now)
            self._wake_one()

    def _wake_one(self) -> None:
        if self._lanes and self._waiting:
            self._ask(self._waiting.popleft())

    def _ask(self, worker: Worker) -> None:
        worker.is_asking = True
        self._transition(partial(self._claimed, worker, worker.room))

    def _claimed(self, worker: Worker, room: int) -> None:
        claimed, late = self._lanes.claim(room, self._now)
        for job in late:
            self._end(job, 0)
        for job in claimed:
            worker.add(job)
        self._step(worker)
        if not worker.room:
            worker.is_asking = False
        elif claimed:
            self._ask(worker)
        else:
            self._waiting.append(worker)
        self._wake_one()

    def _end(self, job: Job, num_images: int) -> None:
        assert job.id not in self._ended
        self._ended[job.id] = self._now, num_images

    # Devices

    def _step(self, worker: Worker) -> None:
        if worker.is_stepping:
            return
        for job in worker.drop_late(self._now):
            self._transition(partial(self._end, job, 0))
        worker.fill_slots(self._now)
        choice = worker.choose(self._now)
        if isinstance(choice, StepBatch):
            seconds = self._hardware.costs.mean_s(choice.stage, choice.guided, choice.bucket)
            worker.is_stepping = True
            self._device_busy_s += seconds
            self._num_riders += len(choice.slots)
            self._num_rows += choice.bucket
            self._at(self._now + seconds + self._hardware.step_overhead_s, partial(self._stepped, worker, choice))
        elif isinstance(choice, Hold):
            self._at(choice.until, partial(self._step, worker))

    def _stepped(self, worker: Worker, batch: StepBatch) -> None:
        worker.is_stepping = False
        for job in worker.advance(batch, self._now):
            finish = partial(self._transition, partial(self._end, job, job.request.num_samples))
            self._at(self._now + self._hardware.job_overhead_s, finish)
        self._step(worker)
        if worker.room and not worker.is_asking:
            self._ask(worker)
