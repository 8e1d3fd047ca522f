"""The queue of simulated jobs: by priority, then by tenants in turn, then by age."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection
from dataclasses import dataclass

from msf_scheduler.jobs import Priority
from msf_scheduler.step_costs import StepPattern
from msf_scheduler.tenant_shares import Terms


@dataclass(frozen=True)
class SimulatedJob:
    """One job to come. `arrived_at` in seconds from the start."""

    arrived_at: float
    num_samples: int
    pattern: StepPattern
    priority: Priority = Priority.NORMAL
    tenant: str = ""

    @property
    def terms(self) -> Terms:
        """Priority and tenant."""
        return self.priority, self.tenant


class SimulatedQueue:
    """Job numbers in the order of claims. Tenants share by sample steps; there is no ageing."""

    def __init__(self) -> None:
        self._lanes: dict[Terms, deque[tuple[int, SimulatedJob]]] = defaultdict(deque)
        self._num_steps: dict[str, int] = defaultdict(int)  # claimed, by tenant

    def oldest_arrived_at(self) -> float | None:
        """Return the arrival of the oldest job, or None if there is none."""
        return min((lane[0][1].arrived_at for lane in self._lanes.values() if lane), default=None)

    def num_steps(self) -> int:
        """Return the sample steps of all jobs, decodes included."""
        return sum(job.num_samples * len(job.pattern.stages) for lane in self._lanes.values() for _, job in lane)

    def terms(self) -> set[Terms]:
        """Return the priority and tenant of every job."""
        return {terms for terms, lane in self._lanes.items() if lane}

    def push(self, number: int, job: SimulatedJob) -> None:
        """Append a job."""
        self._lanes[job.terms].append((number, job))

    def pop(self, exclude: Collection[Terms] = ()) -> tuple[int, SimulatedJob] | None:
        """Return the next job whose terms are none of `exclude`, or None."""
        terms = min(self.terms().difference(exclude), key=self._order, default=None)
        if terms is None:
            return None
        number, job = self._lanes[terms].popleft()
        self._num_steps[job.tenant] += job.num_samples * len(job.pattern.stages)
        return number, job

    def _order(self, terms: Terms) -> tuple[int, int, float]:
        priority, tenant = terms
        return priority.rank, self._num_steps[tenant], self._lanes[terms][0][1].arrived_at
