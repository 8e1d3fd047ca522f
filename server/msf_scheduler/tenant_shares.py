"""Importance of a worker's jobs: their priority and their tenant's weight, which the tenant's jobs share."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

from msf_scheduler.active_tables import JobTable
from msf_scheduler.jobs import Priority

PRIORITY_WEIGHT = {Priority.HIGH: 8.0, Priority.NORMAL: 1.0, Priority.LOW: 0.125}

Terms = tuple[Priority, str]  # priority, tenant


@dataclass(frozen=True)
class ActiveWork:
    """A job in a worker, as the policy sees it. Times are seconds on the clock of `now`."""

    id: str
    arrived_at: float
    num_samples: int = 1
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    weight: float = 1.0  # of the tenant
    deadline: float | None = None
    is_strict: bool = False  # takes only the buckets in which its bytes do not depend on the batch


class TenantShares:
    """Shares of the jobs in a table in their tenants' weights, kept as jobs come and go."""

    def __init__(self, jobs: JobTable) -> None:
        """Write the columns `weight` and `importance` of the table."""
        self._jobs = jobs
        self._by_tenant: dict[str, set[int]] = defaultdict(set)
        self._terms: Counter[Terms] = Counter()  # of all jobs

    @property
    def terms(self) -> set[Terms]:
        """Return the priority and tenant of every job."""
        return set(self._terms)

    def enter(self, job: int, work: ActiveWork) -> None:
        """Count a job in."""
        self._by_tenant[work.tenant].add(job)
        self._terms[work.priority, work.tenant] += 1
        self._jobs.weight[job] = PRIORITY_WEIGHT[work.priority] * work.weight
        self._divide(work.tenant)

    def leave(self, job: int, work: ActiveWork) -> None:
        """Count a job out, with the terms that it entered with."""
        terms = work.priority, work.tenant
        self._terms[terms] -= 1
        if not self._terms[terms]:
            del self._terms[terms]
        self._by_tenant[work.tenant].remove(job)
        if self._by_tenant[work.tenant]:
            self._divide(work.tenant)
        else:
            del self._by_tenant[work.tenant]

    def _divide(self, tenant: str) -> None:
        """Divide a tenant's weight among its jobs.

        A weight grows with the square root of a job's slowdown. N jobs slow each other down by N, and that gives them
        no claim on other tenants' time: hence the additional root.
        """
        jobs = list(self._by_tenant[tenant])
        self._jobs.importance[jobs] = self._jobs.weight[jobs] / len(jobs) ** 1.5
