"""Model versions that operators want served, and what each worker reports about them.

The request is a state, not a message: a worker that was away, or starts later, does the same as the others.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from enum import StrEnum

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import ModelKey, Record
from msf_scheduler.scripts import Script

REPORT_TTL_S = 60


class VersionState(StrEnum):
    """States of a model version, by Triton's names."""

    READY = "READY"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class DesiredVersions(Record):
    """The only versions of one model that are to be served; `revision` grows with every change of any model."""

    versions: tuple[str, ...]
    revision: int


class VersionReport(Record):
    """A version that a worker has in its model repository or serves; `reason` says why it is not as desired."""

    name: str
    version: str
    state: VersionState
    reason: str = ""


class WorkerReport(Record):
    """State of all versions in one worker, which has acted on all changes up to `revision`."""

    revision: int
    versions: tuple[VersionReport, ...]


BEST_FIRST = (VersionState.READY, VersionState.UNLOADING, VersionState.LOADING, VersionState.UNAVAILABLE)


def best_reports(reports: Iterable[WorkerReport]) -> dict[ModelKey, VersionReport]:
    """Return each version's report with the best state."""
    best: dict[ModelKey, VersionReport] = {}
    for worker in reports:
        for report in worker.versions:
            key = report.name, report.version
            best[key] = min(best.get(key, report), report, key=lambda candidate: BEST_FIRST.index(candidate.state))
    return best


class ModelControl:
    """Desired versions and workers' reports. Without desired versions, workers serve what they find when they start.

    Every method may raise `QueueUnavailable`.
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._set_versions = Script(redis, "set_versions")
        self._keep = Script(redis, "keep")

    async def revision(self) -> int:
        """Return the latest revision."""
        return int(await call(self._redis, "GET", keys.REVISION) or 0)

    async def read(self) -> tuple[int, dict[str, DesiredVersions]]:
        """Return the latest revision, and the desired versions by model."""
        revision = await self.revision()
        stored = await call(self._redis, "HGETALL", keys.DESIRED)
        return revision, {name.decode(): DesiredVersions.model_validate_json(value) for name, value in stored.items()}

    async def set_versions(
        self, name: str, versions: Collection[str] | None, *, since: int | None = None
    ) -> int | None:
        """Set the versions of a model that are to be served, or None to leave that to workers. Return the revision.

        Return None, and change nothing, if this model was changed after the revision `since`.
        """
        revision = await self._set_versions(
            {"desired": keys.DESIRED, "revision": keys.REVISION},
            model=name,
            versions=None if versions is None else json.dumps(list(versions)),
            since=since,
        )
        return revision or None

    async def next_revision(self) -> int:
        """Return a revision that changes nothing: reports that have it were made after this call."""
        return int(await call(self._redis, "INCR", keys.REVISION))

    async def report(self, worker_id: str, report: WorkerReport) -> None:
        """Store a worker's report for REPORT_TTL_S."""
        await self._keep({"name": f"{keys.REPORT}{worker_id}"}, report.model_dump_json().encode(), ttl_s=REPORT_TTL_S)

    async def reports(self, worker_ids: Iterable[str]) -> list[WorkerReport]:
        """Return the reports of those workers that have made one."""
        names = [f"{keys.REPORT}{worker_id}" for worker_id in worker_ids]
        stored = await call(self._redis, "MGET", *names) if names else []
        return [WorkerReport.model_validate_json(report) for report in stored if report is not None]
