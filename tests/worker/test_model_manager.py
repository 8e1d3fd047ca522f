"""A worker follows what operators want, and lets nothing go that is still needed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from redis.asyncio import Redis

from msf_engine.errors import PlanError
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobState, WorkerInfo
from msf_scheduler.model_control import DesiredModels, VersionState
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry
from msf_scheduler.stage import Stage
from msf_worker import model_manager as keeping
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_manager import Keeper
from msf_worker.model_runner import ModelRunner
from tests.worker.support import SPEC, Gate, running, until, with_plans

SECOND = SPEC.model_copy(update={"version": "2"})


@dataclass
class FakeLoader:
    """Finds versions 1 and 2 of the tiny model, and gives both the same plans."""

    version: ModelVersion
    plans: ModelPlans
    failure: PlanError | None = None
    loaded: list[str] = field(default_factory=list)

    @property
    def backend(self) -> FakeLoader:
        return self

    name = "test"

    def present(self) -> list[tuple[str, str]]:
        return [("tiny", "1"), ("tiny", "2")]

    def load(self, name: str, version: str) -> ModelRunner:
        self.loaded.append(version)
        if self.failure:
            raise self.failure
        return ModelRunner(replace(self.version, version=version), Executor(self.plans, 8))


@dataclass
class Followed:
    """What operators say, and what became of it."""

    desired: DesiredModels
    registry: Registry
    loader: FakeLoader
    keeper: Keeper

    async def served(self) -> list[str]:
        return [model.version for worker in await self.registry.workers() for model in worker.models]

    async def told(self) -> dict[str, tuple[VersionState, str]]:
        reports = await self.desired.reports([worker.id for worker in await self.registry.workers()])
        return {each.version: (each.state, each.reason) for report in reports for each in report.versions}

    async def until_served(self, *versions: str) -> None:
        async def is_so() -> bool:
            return await self.served() == list(versions)

        await until(is_so)

    async def until_told(self, version: str, state: VersionState, reason: str = "") -> None:
        async def is_so() -> bool:
            return (await self.told()).get(version) == (state, reason)

        await until(is_so)

    async def until_heard(self) -> None:
        """Once a look is over that began after now."""
        revision = await self.desired.ask()

        async def is_so() -> bool:
            reports = await self.desired.reports([worker.id for worker in await self.registry.workers()])
            return all(report.revision >= revision for report in reports)

        await until(is_so)


@pytest.fixture
def followed(redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch) -> Followed:
    monkeypatch.setattr(keeping, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(keeping, "GRACE_S", 0.0)
    desired, loader = DesiredModels(redis), FakeLoader(version, plans)
    keeper = Keeper(loader, desired, JobQueue(redis), WorkerMetrics(8))  # type: ignore[arg-type]  # a fake
    return Followed(desired, Registry(redis), loader, keeper)


async def test_a_version_is_served_once_it_is_wanted(
    redis: Redis, version: ModelVersion, plans: ModelPlans, followed: Followed
) -> None:
    async with running(redis, version, plans, keeper=followed.keeper) as worker:
        await followed.until_told("2", VersionState.UNAVAILABLE, "not loaded")
        early = await worker.admit(SECOND)
        await followed.desired.want("tiny", ["1", "2"])
        assert (await worker.end_of(early)).state is JobState.SUCCEEDED
        await followed.until_served("1", "2")
        await followed.until_told("2", VersionState.READY)
        assert (await worker.end_of(await worker.admit(SPEC))).state is JobState.SUCCEEDED
        assert followed.loader.loaded == ["2"]


async def test_a_version_is_not_told_to_be_ready_before_servers_can_see_it(
    redis: Redis, version: ModelVersion, plans: ModelPlans, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering, go_on = asyncio.Event(), asyncio.Event()
    register = Registry.register

    async def held_up(registry: Registry, worker: WorkerInfo) -> None:
        if len(worker.models) == 2:
            registering.set()
            await go_on.wait()
        await register(registry, worker)

    monkeypatch.setattr(Registry, "register", held_up)
    async with running(redis, version, plans, keeper=followed.keeper):
        await followed.desired.want("tiny", ["1", "2"])
        await registering.wait()
        await followed.until_heard()
        assert (await followed.told())["2"] == (VersionState.LOADING, "")
        go_on.set()
        await followed.until_told("2", VersionState.READY)
        assert await followed.served() == ["1", "2"]


async def test_what_is_not_wanted_goes_when_its_last_job_has_ended(
    redis: Redis, version: ModelVersion, plans: ModelPlans, followed: Followed
) -> None:
    gate = Gate()
    async with running(
        redis, version, with_plans(plans, Stage.BASE, gate), num_slots=1, keeper=followed.keeper
    ) as worker:
        begun = await worker.admit(SPEC)
        await until(gate.reached.is_set)
        late = await worker.admit(SPEC)  # by a server that has not heard yet
        await followed.desired.want("tiny", [])
        await followed.until_told("1", VersionState.UNLOADING)
        await followed.until_heard()
        assert await followed.served() == ["1"]
        gate.open.set()
        for job_id in (begun, late):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
        await followed.until_served()
        await followed.until_told("1", VersionState.UNAVAILABLE, "not loaded")
        assert worker.metrics.registry.get_sample_value("msf_slots_in_use", {"model": "tiny", "version": "1"}) is None
        waits = await worker.admit(SPEC)
        await followed.until_heard()
        assert (await worker.job(waits)).state is JobState.QUEUED
        await followed.desired.want("tiny", ["1"])
        assert (await worker.end_of(waits)).state is JobState.SUCCEEDED


async def test_what_is_wanted_again_stays(
    redis: Redis, version: ModelVersion, plans: ModelPlans, followed: Followed
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), keeper=followed.keeper) as worker:
        begun = await worker.admit(SPEC)
        await until(gate.reached.is_set)
        await followed.desired.want("tiny", [])
        await followed.until_told("1", VersionState.UNLOADING)
        await followed.desired.want("tiny", ["1"])
        await followed.until_told("1", VersionState.READY)
        gate.open.set()
        assert (await worker.end_of(begun)).state is JobState.SUCCEEDED
        await followed.until_heard()
        assert await followed.served() == ["1"]
        assert followed.loader.loaded == []


async def test_a_failure_is_told_and_tried_again_when_it_is_asked_for_again(
    redis: Redis, version: ModelVersion, plans: ModelPlans, followed: Followed
) -> None:
    followed.loader.failure = PlanError("no room")
    async with running(redis, version, plans, keeper=followed.keeper) as worker:
        await followed.desired.want("tiny", ["1", "2"])
        await followed.until_told("2", VersionState.UNAVAILABLE, "no room")
        await followed.until_heard()
        assert followed.loader.loaded == ["2"]
        followed.loader.failure = None
        await followed.desired.want("tiny", ["1", "2"])
        await followed.until_served("1", "2")
        assert (await worker.end_of(await worker.admit(SECOND))).state is JobState.SUCCEEDED
