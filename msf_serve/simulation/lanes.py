"""Whose turn it is, as `scheduler/lua/claim.lua` decides, but for suspects: nobody dies here.

Bands (priorities), raised while they are passed over; in a band tenants by virtual time (start-time fair queuing, in
sample steps over weight); of a tenant its users in turn; of a user the jobs by age.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import count

from msf_serve.scheduler.jobs import Priority
from msf_serve.simulation.jobs import Job

AGEING_S = 5.0
LEVELS = {priority: level for level, priority in enumerate(Priority)}


@dataclass
class _User:
    turn: int
    jobs: deque[Job] = field(default_factory=deque)


@dataclass
class _Tenant:
    passed: float  # the virtual time of its turn
    users: dict[str, _User] = field(default_factory=dict)


@dataclass
class _Band:
    since: float  # when it was last served, or began to wait
    tenants: dict[str, _Tenant] = field(default_factory=dict)


class Lanes:
    """Jobs that wait to be claimed."""

    def __init__(self) -> None:
        self._bands: dict[Priority, _Band] = {}  # those only where jobs wait, and so on down
        self._passes: dict[str, float] = {}  # of tenants that are ahead of the virtual time
        self._virtual_time = 0.0
        self._turns = count()

    def __bool__(self) -> bool:
        return bool(self._bands)

    def join(self, job: Job, now: float) -> None:
        request = job.request
        band = self._bands.setdefault(request.priority, _Band(now))
        if request.tenant not in band.tenants:
            passed = max(self._virtual_time, self._passes.get(request.tenant, 0.0))
            band.tenants[request.tenant] = _Tenant(passed)
        users = band.tenants[request.tenant].users
        if request.user not in users:
            users[request.user] = _User(next(self._turns))
        users[request.user].jobs.append(job)

    def claim(self, max_samples: int, now: float) -> tuple[list[Job], list[Job]]:
        """Take the next jobs, whole, while they hold fewer than `max_samples`, and those found late on the way."""
        claimed: list[Job] = []
        late: list[Job] = []
        num_samples = 0
        while self._bands and num_samples < max_samples:
            job = self._next(now)
            if job.is_late(now):
                late.append(job)
            else:
                claimed.append(job)
                num_samples += job.request.num_samples
                self._charge(job)
            self._leave(job)
        self._passes = {tenant: passed for tenant, passed in self._passes.items() if passed > self._virtual_time}
        return claimed, late

    def _next(self, now: float) -> Job:
        priority = min(self._bands, key=lambda each: self._place(each, now))
        band = self._bands[priority]
        band.since = now
        name, tenant = min(band.tenants.items(), key=lambda item: (item[1].passed, item[0]))
        self._virtual_time = max(self._virtual_time, tenant.passed)
        self._passes[name] = tenant.passed
        user = min(tenant.users.values(), key=lambda each: each.turn)
        user.turn = next(self._turns)
        return user.jobs[0]

    def _place(self, priority: Priority, now: float) -> tuple[float, float]:
        since = self._bands[priority].since
        return LEVELS[priority] - max(now - since, 0.0) // AGEING_S, since

    def _charge(self, job: Job) -> None:
        """A tenant's debt counts in every band."""
        name = job.request.tenant
        self._passes[name] += job.cost / job.request.weight
        for band in self._bands.values():
            if name in band.tenants:
                band.tenants[name].passed = self._passes[name]

    def _leave(self, job: Job) -> None:
        """The first of its lane goes, and with it what is empty then."""
        request = job.request
        band = self._bands[request.priority]
        tenant = band.tenants[request.tenant]
        user = tenant.users[request.user]
        user.jobs.popleft()
        if not user.jobs:
            del tenant.users[request.user]
        if not tenant.users:
            del band.tenants[request.tenant]
        if not band.tenants:
            del self._bands[request.priority]
        if not self._bands:
            self._passes.clear()  # an empty queue owes nobody anything
