"""Versions that operators want served: the latest request stands."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from msf_scheduler.model_control import DesiredVersions, ModelControl, VersionReport, VersionState, WorkerReport


@pytest.fixture
def desired(redis: Redis) -> ModelControl:
    return ModelControl(redis)


async def test_at_first_nothing_is_desired(desired: ModelControl) -> None:
    assert await desired.read() == (0, {})


async def test_the_latest_request_stands(desired: ModelControl) -> None:
    assert await desired.set_versions("cats", ["1", "2"]) == 1
    assert await desired.set_versions("dogs", ["7"]) == 2
    assert await desired.set_versions("cats", []) == 3
    assert await desired.read() == (
        3,
        {"cats": DesiredVersions(versions=(), revision=3), "dogs": DesiredVersions(versions=("7",), revision=2)},
    )
    assert await desired.set_versions("cats", None) == 4
    assert await desired.read() == (4, {"dogs": DesiredVersions(versions=("7",), revision=2)})


async def test_a_request_based_on_an_old_revision_is_refused(desired: ModelControl) -> None:
    revision = await desired.next_revision()
    first = await desired.set_versions("cats", ["1"], since=revision)
    await desired.set_versions("dogs", ["1"])
    second = await desired.set_versions("cats", ["2"], since=first)
    assert second is not None
    assert await desired.set_versions("cats", ["3"], since=first) is None
    assert await desired.set_versions("cats", None, since=revision) is None
    assert (await desired.read())[1]["cats"].versions == ("2",)


async def test_reports_are_those_of_the_given_workers(desired: ModelControl) -> None:
    ready = VersionReport(name="cats", version="1", state=VersionState.READY)
    for worker, revision in (("a", 1), ("b", 2), ("a", 3)):
        await desired.report(worker, WorkerReport(revision=revision, versions=(ready,)))
    assert [report.revision for report in await desired.reports(["a", "b", "c"])] == [3, 2]
    assert await desired.reports([]) == []
