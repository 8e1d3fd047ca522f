"""What is simulated: requests, the jobs that they become, the hardware that serves them, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

from msf_serve.scheduler.costs import StepCosts, Work
from msf_serve.scheduler.jobs import Priority


@dataclass(frozen=True)
class Request:
    """One job to be. `arrived_at` in seconds from the start; the rest as in `scheduler.jobs.Terms`."""

    arrived_at: float
    num_samples: int
    work: Work
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    user: str = ""
    weight: float = 1.0
    timeout_s: float | None = None


@dataclass(frozen=True)
class Hardware:
    """What everything takes, in seconds.

    `transition_s`: one script of Redis. A job takes three (admit, claim, finish), so it is a third of all that Redis
    does for a job. `job_overhead_s`: what a job takes beside that and its steps, out of the device's way.
    """

    costs: StepCosts
    num_slots: int = 32
    step_overhead_s: float = 0.0  # between two step batches
    job_overhead_s: float = 0.0
    transition_s: float = 0.0


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. The worker that holds it writes the counts and `left_s`."""

    id: str
    request: Request
    admitted_at: float
    least_s: float  # no sooner than this can it be done
    whole_s: float  # device seconds of all its samples
    left_s: float  # and what of it is left
    num_waiting: int  # samples without a slot yet
    num_left: int  # samples without an image yet

    @classmethod
    def of(cls, id: str, request: Request, admitted_at: float, costs: StepCosts) -> Job:
        whole_s = request.num_samples * costs.work_s(request.work)
        return cls(
            id,
            request,
            admitted_at,
            costs.least_s(request.work),
            whole_s,
            whole_s,
            request.num_samples,
            request.num_samples,
        )

    @property
    def cost(self) -> int:
        """What its tenant is charged, in sample steps."""
        work = self.request.work
        return self.request.num_samples * (work.num_base_steps + work.num_residual_steps)

    @property
    def deadline(self) -> float | None:
        timeout_s = self.request.timeout_s
        return None if timeout_s is None else self.admitted_at + timeout_s

    def is_late(self, now: float) -> bool:
        """Whether it misses its deadline if it begins now, however fast it goes."""
        return self.deadline is not None and now + self.least_s > self.deadline


@dataclass(frozen=True)
class Outcome:
    """`latencies_s` in the order of the requests, infinite where a job missed its deadline.

    Busy seconds and counts are totals of all workers; `num_rows` are those of the buckets that `num_riders` rode in.
    """

    latencies_s: tuple[float, ...]
    duration_s: float
    num_images: int
    num_workers: int
    num_riders: int
    num_rows: int
    device_busy_s: float
    redis_busy_s: float

    @property
    def images_per_s(self) -> float:
        return self.num_images / self.duration_s

    @property
    def fill(self) -> float:
        """Of the step batches, 0 to 1."""
        return self.num_riders / self.num_rows

    @property
    def utilisation(self) -> float:
        """Of the devices, 0 to 1."""
        return self.device_busy_s / (self.num_workers * self.duration_s)

    @property
    def redis_utilisation(self) -> float:
        return self.redis_busy_s / self.duration_s

    @property
    def num_expired(self) -> int:
        return sum(math.isinf(latency_s) for latency_s in self.latencies_s)

    @property
    def mean_s(self) -> float:
        return mean(self.latencies_s)

    def percentile_s(self, share: float, first: int = 0) -> float:
        """The latency that `share` of the requests from the `first` on do not exceed: one that was seen."""
        ordered = sorted(self.latencies_s[first:])
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]
