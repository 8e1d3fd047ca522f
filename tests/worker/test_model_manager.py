"""Model management: a worker follows the desired state, and keeps what its jobs still need."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from msf_engine.errors import PlanError
from msf_engine.executor import Executor
from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_engine.repository_scan import Contents
from msf_scheduler.jobs import JobState, ModelKey, WorkerInfo
from msf_scheduler.model_control import ModelControl, VersionState
from msf_scheduler.queue import JobQueue
from msf_scheduler.registry import Registry
from msf_scheduler.stage import Stage
from msf_worker import model_manager
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_loader import ModelLoader
from msf_worker.model_manager import ModelManager
from msf_worker.model_runner import ModelRunner
from msf_worker.repository_poll import RepositoryPoll
from msf_worker.worker import Worker
from tests.polling import eventually
from tests.worker.support import SPEC, Gate, running, with_plans

SECOND = SPEC.model_copy(update={"version": "2"})


@dataclass
class FakeLoader(ModelLoader):
    """Loads versions 1 and 2 of the tiny model, both with the same plans."""

    version: ModelVersion
    plans: ModelPlans
    failure: PlanError | None = None
    loaded: list[str] = field(default_factory=list)
    refusals: dict[ModelKey, str] = field(default_factory=dict)

    def scan(self) -> Contents:
        return Contents([("tiny", "1"), ("tiny", "2")], dict(self.refusals))

    def explain(self, key: ModelKey, error: Exception) -> str:
        return str(error)

    def load(self, name: str, version: str) -> ModelRunner:
        self.loaded.append(version)
        if self.failure:
            raise self.failure
        return ModelRunner(replace(self.version, version=version), Executor(self.plans, 8))


@dataclass
class Operator:
    """An operator, who changes the desired state and watches what workers make of it."""

    control: ModelControl
    registry: Registry
    queue: JobQueue
    loader: FakeLoader
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    poll: RepositoryPoll | None = None

    def manager(self, worker: Worker) -> ModelManager:
        return ModelManager(
            self.loader, self.control, self.queue, worker.models, worker.device, self.metrics, self.poll
        )

    async def served(self) -> list[str]:
        return [model.version for worker in await self.registry.workers() for model in worker.models]

    async def reports(self) -> dict[str, tuple[VersionState, str]]:
        reports = await self.control.reports([worker.id for worker in await self.registry.workers()])
        return {item.version: (item.state, item.reason) for report in reports for item in report.versions}

    async def until_served(self, *versions: str) -> None:
        async def is_served() -> bool:
            return await self.served() == list(versions)

        await eventually(is_served)

    async def until_reported(self, version: str, state: VersionState, reason: str = "") -> None:
        async def is_reported() -> bool:
            return (await self.reports()).get(version) == (state, reason)

        await eventually(is_reported)

    async def until_checked(self) -> None:
        """Wait for the end of a check that begins after this call."""
        revision = await self.control.next_revision()

        async def is_checked() -> bool:
            reports = await self.control.reports([worker.id for worker in await self.registry.workers()])
            return all(report.revision >= revision for report in reports)

        await eventually(is_checked)


@pytest.fixture
def operator(redis: Redis, version: ModelVersion, plans: ModelPlans, monkeypatch: pytest.MonkeyPatch) -> Operator:
    monkeypatch.setattr(model_manager, "CHECK_INTERVAL_S", 0.01)
    monkeypatch.setattr(model_manager, "RETIRE_DELAY_S", 0.0)
    return Operator(ModelControl(redis), Registry(redis), JobQueue(redis), FakeLoader(version, plans))


async def test_a_version_is_served_once_it_is_desired(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator
) -> None:
    async with running(redis, version, plans, managed_by=operator.manager) as worker:
        await operator.until_reported("2", VersionState.UNAVAILABLE, "not loaded")
        early = await worker.admit(SECOND)
        await operator.control.set_versions("tiny", ["1", "2"])
        assert (await worker.end_of(early)).state is JobState.SUCCEEDED
        await operator.until_served("1", "2")
        await operator.until_reported("2", VersionState.READY)
        assert (await worker.end_of(await worker.admit(SPEC))).state is JobState.SUCCEEDED
        assert operator.loader.loaded == ["2"]


async def test_a_version_is_not_reported_ready_before_servers_can_see_it(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering, may_register = asyncio.Event(), asyncio.Event()
    register = Registry.register

    async def register_late(registry: Registry, worker: WorkerInfo) -> None:
        if len(worker.models) == 2:
            registering.set()
            await may_register.wait()
        await register(registry, worker)

    monkeypatch.setattr(Registry, "register", register_late)
    async with running(redis, version, plans, managed_by=operator.manager):
        await operator.control.set_versions("tiny", ["1", "2"])
        await registering.wait()
        await operator.until_checked()
        assert (await operator.reports())["2"] == (VersionState.LOADING, "")
        may_register.set()
        await operator.until_reported("2", VersionState.READY)
        assert await operator.served() == ["1", "2"]


async def test_an_undesired_version_leaves_after_its_last_job(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), managed_by=operator.manager) as worker:
        running_job = await worker.admit(SPEC)
        await eventually(gate.reached.is_set)
        late = await worker.admit(SPEC)  # admitted by a server that does not know yet
        await operator.control.set_versions("tiny", [])
        await operator.until_reported("1", VersionState.UNLOADING)
        await operator.until_checked()
        assert await operator.served() == ["1"]
        gate.open.set()
        for job_id in (running_job, late):
            assert (await worker.end_of(job_id)).state is JobState.SUCCEEDED
        await operator.until_served()
        await operator.until_reported("1", VersionState.UNAVAILABLE, "not loaded")
        assert worker.metrics.registry.get_sample_value("msf_slots_in_use", {"model": "tiny", "version": "1"}) is None
        later = await worker.admit(SPEC)
        await operator.until_checked()
        assert (await worker.job(later)).state is JobState.QUEUED
        await operator.control.set_versions("tiny", ["1"])
        assert (await worker.end_of(later)).state is JobState.SUCCEEDED


async def test_a_version_that_is_desired_again_stays(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator
) -> None:
    gate = Gate()
    async with running(redis, version, with_plans(plans, Stage.BASE, gate), managed_by=operator.manager) as worker:
        running_job = await worker.admit(SPEC)
        await eventually(gate.reached.is_set)
        await operator.control.set_versions("tiny", [])
        await operator.until_reported("1", VersionState.UNLOADING)
        await operator.control.set_versions("tiny", ["1"])
        await operator.until_reported("1", VersionState.READY)
        gate.open.set()
        assert (await worker.end_of(running_job)).state is JobState.SUCCEEDED
        await operator.until_checked()
        assert await operator.served() == ["1"]
        assert operator.loader.loaded == []


async def test_a_failed_load_is_reported_and_repeated_on_request(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator
) -> None:
    operator.loader.failure = PlanError("out of memory")
    async with running(redis, version, plans, managed_by=operator.manager) as worker:
        await operator.control.set_versions("tiny", ["1", "2"])
        await operator.until_reported("2", VersionState.UNAVAILABLE, "out of memory")
        await operator.until_checked()
        assert operator.loader.loaded == ["2"]
        operator.loader.failure = None
        await operator.control.set_versions("tiny", ["1", "2"])
        await operator.until_served("1", "2")
        assert (await worker.end_of(await worker.admit(SECOND))).state is JobState.SUCCEEDED


async def test_polling_loads_a_version_once_its_files_have_settled(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny" / "2"
    folder.mkdir(parents=True)
    operator.poll = RepositoryPoll(tmp_path)
    operator.loader.failure = PlanError("damaged")
    async with running(redis, version, plans, managed_by=operator.manager):
        await operator.until_reported("2", VersionState.UNAVAILABLE, "damaged")
        await operator.until_checked()
        assert operator.loader.loaded == ["2"]  # and no second time
        operator.loader.failure = None
        (folder / "SHA256SUMS").write_text("mended")
        await operator.until_served("1", "2")
        assert operator.loader.loaded == ["2", "2"]


async def test_polling_leaves_a_model_to_its_operator(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator, tmp_path: Path
) -> None:
    operator.poll = RepositoryPoll(tmp_path)
    await operator.control.set_versions("tiny", ["1"])
    async with running(redis, version, plans, managed_by=operator.manager):
        for _ in range(3):
            await operator.until_checked()
        assert operator.loader.loaded == []


def test_a_folder_that_is_being_written_is_not_offered(tmp_path: Path) -> None:
    key, poll = ("tiny", "2"), RepositoryPoll(tmp_path)
    folder = tmp_path / "tiny" / "2"
    folder.mkdir(parents=True)
    offers = []
    for content in ("a", "ab", "abc", "abc"):
        (folder / "base.safetensors").write_text(content)
        os.utime(folder / "base.safetensors", (1, 1))
        poll.look([key])
        offers.append(poll.is_new(key))
    assert offers == [False, False, False, True]
    poll.mark_tried([key])
    poll.look([key])
    assert not poll.is_new(key)


async def test_jobs_of_an_unloaded_version_whose_worker_died_are_run(
    redis: Redis, version: ModelVersion, plans: ModelPlans, operator: Operator
) -> None:
    await operator.control.set_versions("tiny", ["1"])
    async with running(redis, version, plans, managed_by=operator.manager) as worker:
        accepted = await worker.admit(SECOND)  # before it was unloaded
        assert (await worker.end_of(accepted)).state is JobState.SUCCEEDED
        assert operator.loader.loaded == ["2"]
        await operator.until_served("1")
