"""A worker in this process over the tiny model, and what its tests do with it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from redis.asyncio import Redis
from torch import Tensor

from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import JobRecord, JobSpec, JobState, Terms, WorkerInfo
from msf_scheduler.queue import JobQueue, new_job_id
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import BatchingPolicy
from msf_scheduler.tracing import Tracing
from msf_worker.metrics import WorkerMetrics
from msf_worker.model_runner import ModelRunner
from msf_worker.perfetto import Trace
from msf_worker.worker import Keeper, Worker

TIMEOUT_S = 120.0  # a machine may be slow and busy; no test comes near it unless it fails
SPEC = JobSpec(model="tiny", version="1", label=0, num_samples=1, seed=7, num_steps=6, guidance_scale=2.0)


@dataclass
class RunningWorker:
    """`stop` asks it to drain; `ended` is its `run`. The queue is as a server uses it."""

    runner: ModelRunner
    redis: Redis
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

        await until(has_ended)
        return await self.job(job_id)

    async def has_attempted(self, job_id: str, attempt: int) -> None:
        async def attempted() -> bool:
            job = await self.job(job_id)
            return job.state is JobState.RUNNING and job.attempt == attempt

        await until(attempted)

    async def images(self, job_id: str) -> list[bytes]:
        return await self.queue.images(await self.job(job_id))

    def is_idle(self) -> bool:
        return self.runner.num_slots_in_use() == 0

    def num_jobs(self, outcome: str) -> float:
        return self.count("msf_worker_jobs_total", outcome=outcome)

    def count(self, name: str, **labels: str) -> float:
        labels = {"model": "tiny", "version": "1"} | labels
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def running(
    redis: Redis,
    version: ModelVersion,
    plans: ModelPlans,
    *,
    also: Sequence[ModelVersion] = (),
    num_slots: int = 8,
    lease_s: float = 1.0,
    drain_timeout_s: float = TIMEOUT_S,
    step_timeout_s: float = TIMEOUT_S,
    policy: BatchingPolicy | None = None,
    trace: Trace | None = None,
    tracing: Tracing | None = None,
    keeper: Keeper | None = None,
) -> AsyncIterator[RunningWorker]:
    """Over `version`, and over others that share its plans."""
    runners = [ModelRunner(each, Executor(plans, num_slots)) for each in (version, *also)]
    metrics = WorkerMetrics(num_slots)
    info = WorkerInfo(
        id=f"worker-{new_job_id()}",
        host="here",
        pid=1,
        backend="test",
        num_slots=num_slots,
        models=tuple(runner.info() for runner in runners),
    )
    worker = Worker(
        info,
        runners,
        redis,
        metrics,
        lease_s=lease_s,
        drain_timeout_s=drain_timeout_s,
        step_timeout_s=step_timeout_s,
        policy=policy,
        trace=trace,
        tracing=tracing,
        keeper=keeper,
    )
    stop = asyncio.Event()
    ended = asyncio.create_task(worker.run(stop))
    try:
        yield RunningWorker(runners[0], redis, metrics, ended, stop)
    finally:
        if ended.cancel():
            with suppress(asyncio.CancelledError):
                await ended


async def admit(queue: JobQueue, spec: JobSpec, terms: Terms | None = None) -> str:
    return (await queue.admit(spec, terms, job_id=new_job_id(), reply_to=None)).id


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            seen = condition()
            if seen if isinstance(seen, bool) else await seen:
                return
            await asyncio.sleep(0.005)


def pixels(file: bytes) -> NDArray[np.uint8]:
    """(H, W) of a grey image, (H, W, channels) of others."""
    return np.asarray(Image.open(io.BytesIO(file)))


def made_alone(plans: ModelPlans, spec: JobSpec) -> list[NDArray[np.uint8]]:
    """The job's images as the engine makes each of them with no other beside it."""
    steps = plans.config.split_steps(spec.num_steps)
    return [
        generate(plans, [SampleRequest(spec.label, spec.seed, index, *steps, spec.guidance_scale)])[0]
        for index in range(spec.num_samples)
    ]


def assert_same(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    """Equal but for what float32 rounds differently in another batch size."""
    assert np.abs(image.astype(int).squeeze() - other.astype(int).squeeze()).max() <= 1


def with_plans(plans: ModelPlans, stage: Stage, wrap: Callable[[Plan], Plan]) -> ModelPlans:
    """The same plans, those of one stage wrapped."""
    by_kind = {
        kind: {bucket: wrap(plan) for bucket, plan in by_bucket.items()} if kind[0] is stage else by_bucket
        for kind, by_bucket in plans.by_kind.items()
    }
    return replace(plans, by_kind=by_kind)


class Gate:
    """Holds the device's thread in front of the plans that it wraps until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, plan: Plan) -> Plan:
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            self.reached.set()
            assert self.open.wait(TIMEOUT_S)
            return plan(*inputs)

        return run
