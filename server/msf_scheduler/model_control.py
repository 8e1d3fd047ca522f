"""Which model versions workers are to serve, as an operator said last, and what each worker made of it.

What was said is a state, not a message: a worker that was away, or starts later, does the same as the others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from enum import StrEnum

from redis.asyncio import Redis

from msf_scheduler import keys
from msf_scheduler.connection import call
from msf_scheduler.jobs import Record
from msf_scheduler.scripts import Script

REPORT_TTL_S = 60


class VersionState(StrEnum):
    """Triton's names."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class Desired(Record):
    """The versions of one model that are wanted, all others not; `revision` grows with every word of an operator."""

    versions: tuple[str, ...]
    revision: int


class VersionReport(Record):
    """A version that is in a worker's model repository or served by it; `reason` tells why it is not as wanted."""

    name: str
    version: str
    state: VersionState
    reason: str = ""


class WorkerReport(Record):
    """What a worker has and does; it had seen all that was desired up to `revision`."""

    revision: int
    versions: tuple[VersionReport, ...]


class DesiredModels:
    """A model of which nothing was said is served as workers find it at their start.

    Every method may raise `QueueUnavailable`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._desire = Script(redis, "desire")

    async def read(self) -> tuple[int, dict[str, Desired]]:
        """The latest revision of all, and what is desired by model."""
        revision = int(await call(self._redis, "GET", keys.REVISION) or 0)
        stored = await call(self._redis, "HGETALL", keys.DESIRED)
        return revision, {name.decode(): Desired.model_validate_json(wish) for name, wish in stored.items()}

    async def want(self, name: str, versions: Collection[str] | None, *, since: int | None = None) -> int | None:
        """Say which versions of a model are wanted (None: nothing is said of it any more). Returns the revision.

        None: someone else has said something of this model after the revision `since`, and that stands.
        """
        wanted = None if versions is None else json.dumps(list(versions))
        return await self._desire("msf:", model=name, versions=wanted, since=since) or None

    async def ask(self) -> int:
        """A revision that changes nothing: reports that have it were made after now."""
        return int(await call(self._redis, "INCR", keys.REVISION))

    async def report(self, worker_id: str, report: WorkerReport) -> None:
        await call(self._redis, "SET", keys.report(worker_id), report.model_dump_json(), "EX", REPORT_TTL_S)

    async def reports(self, worker_ids: Iterable[str]) -> list[WorkerReport]:
        """Of those workers that told any."""
        names = [keys.report(worker_id) for worker_id in worker_ids]
        stored = await call(self._redis, "MGET", *names) if names else []
        return [WorkerReport.model_validate_json(report) for report in stored if report is not None]
