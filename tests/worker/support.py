"""A worker of the tiny model in this process, and actions of its tests."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from msf_engine.executor import Executor
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Array, Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.connection import RedisClient
from msf_scheduler.jobs import JobRecord, JobSpec, JobState, Terms, WorkerInfo
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.stage import Stage
from msf_scheduler.tracing import Tracing
from msf_worker.active_job import sample_request
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_manager import ModelManager
from msf_worker.model_runner import ModelRunner
from msf_worker.settings import WorkerSettings
from msf_worker.waiting import first_done
from msf_worker.worker import Worker
from tests.polling import eventually

TIMEOUT_S = 120.0  # for slow and busy machines; only failing tests reach it
SPEC = JobSpec(model="tiny", version="1", label=0, num_samples=1, seed=7, num_steps=6, guidance_scale=2.0)


@dataclass
class RunningWorker:
    """A worker whose `run` is the task `ended`; `stop` makes it drain, and `queue` is used as by a server."""

    worker: Worker
    runner: ModelRunner
    redis: RedisClient
    metrics: WorkerMetrics
    ended: asyncio.Task[None]
    stop: asyncio.Event
    queue: JobQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.redis)

    async def admit(self, spec: JobSpec, terms: Terms | None = None) -> str:
        return await admit(self.queue, spec, terms)

    async def job(self, job_id: str) -> JobRecord:
        record = await self.queue.get(job_id)
        assert record is not None
        return record

    async def end_of(self, job_id: str) -> JobRecord:
        async def has_ended() -> bool:
            return (await self.job(job_id)).state.is_terminal

        await eventually(has_ended)
        return await self.job(job_id)

    async def has_attempted(self, job_id: str, attempt: int) -> None:
        async def attempted() -> bool:
            job = await self.job(job_id)
            return job.state is JobState.RUNNING and job.attempt == attempt

        await eventually(attempted)

    async def images(self, job_id: str) -> list[bytes]:
        return await self.queue.images(await self.job(job_id))

    def is_idle(self) -> bool:
        return self.worker.device.num_active(self.runner.key) == 0

    def num_jobs(self, outcome: str) -> float:
        return self.count("msf_worker_jobs_total", outcome=outcome)

    def count(self, name: str, **labels: str) -> float:
        labels = {"model": "tiny", "version": "1"} | labels
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    redis: RedisClient,
    version: ModelVersion,
    plans: ModelPlans,
    *,
    also: Sequence[ModelVersion] = (),
    tracing: Tracing | None = None,
    managed_by: Callable[[Worker], ModelManager] | None = None,
    **settings: Any,
) -> AsyncIterator[RunningWorker]:
    """Run a worker of `version`, and of others that share its plans, until the block ends."""
    defaults = {"slots": 8, "lease_s": 1.0, "drain_timeout_s": TIMEOUT_S, "step_timeout_s": TIMEOUT_S}
    worker_settings = WorkerSettings(**(defaults | settings))
    runners = [ModelRunner(model, Executor(plans, worker_settings.slots)) for model in (version, *also)]
    metrics = WorkerMetrics()
    info = WorkerInfo(
        id=f"worker-{new_job_id()}",
        host="here",
        pid=1,
        backend="test",
        num_slots=worker_settings.slots,
        models=tuple(runner.info() for runner in runners),
    )
    worker = Worker(worker_settings, info, runners, redis, metrics, tracing)
    stop = asyncio.Event()
    loops = [worker.run(stop, asyncio.Event())] + ([managed_by(worker).run()] if managed_by else [])
    ended = asyncio.create_task(first_done(*loops))
    try:
        yield RunningWorker(worker, runners[0], redis, metrics, ended, stop)
    finally:
        if ended.cancel():
            with suppress(asyncio.CancelledError):
                await ended


async def admit(queue: JobQueue, spec: JobSpec, terms: Terms | None = None) -> str:
    return (await queue.admit(spec, terms, job_id=new_job_id(), reply_to=None)).id


def trace_events(folder: Path) -> list[dict[str, Any]]:
    """Return the step batches of the one trace file in a folder."""
    [file] = folder.iterdir()
    events: list[dict[str, Any]] = json.loads(f"{file.read_text()}{{}}]")[:-1]
    return events


def pixels(file: bytes) -> NDArray[np.uint8]:
    """Decode a file to (H, W) if it is grey, else (H, W, channels)."""
    return np.asarray(Image.open(io.BytesIO(file)))


def own_plans(plans: ModelPlans) -> ModelPlans:
    """Return copies of the plans, as a plan runs one batch at a time."""
    return replace(plans, by_stage={stage: deepcopy(plan) for stage, plan in plans.by_stage.items()})


def generated_alone(plans: ModelPlans, spec: JobSpec) -> list[NDArray[np.uint8]]:
    """Return the job's images as the engine generates each of them in a batch of one, by plans of its own."""
    plans = own_plans(plans)
    num_steps = plans.config.split_steps(spec.num_steps)
    return [generate(plans, [sample_request(spec, index, num_steps)])[0] for index in range(spec.num_samples)]


def assert_same(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    """Compare images up to the rounding of float32 that depends on the batch size."""
    assert np.abs(image.astype(int).squeeze() - other.astype(int).squeeze()).max() <= 1


def with_seconds(plans: ModelPlans, seconds: float) -> ModelPlans:
    """Return the plans as if each of their batches had taken these seconds when it was validated."""
    return replace(plans, seconds=dict.fromkeys(plans.seconds, seconds))


def with_plans(plans: ModelPlans, stage: Stage, wrap: Callable[[Plan], Plan]) -> ModelPlans:
    """Return the plans with those of one stage wrapped."""
    return replace(plans, by_stage={**plans.by_stage, stage: wrap(plans.by_stage[stage])})


class WrappedPlan:
    """A plan of which a test replaces a part."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def inputs(self, num_rows: int) -> tuple[Array, ...]:
        return self.plan.inputs(num_rows)

    def start(self, num_rows: int) -> None:
        self.plan.start(num_rows)

    def wait(self) -> Array:
        return self.plan.wait()


class Gate:
    """Blocks the device thread at the plans that it wraps until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, plan: Plan) -> Plan:
        gate = self

        class GatedPlan(WrappedPlan):
            def start(self, num_rows: int) -> None:
                gate.reached.set()
                assert gate.open.wait(TIMEOUT_S)
                super().start(num_rows)

        return GatedPlan(plan)
