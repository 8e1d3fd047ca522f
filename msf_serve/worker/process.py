"""A worker process from its settings: load every model of the repository, warm up, serve."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket

import torch

from msf_serve.engine.executor import Executor
from msf_serve.engine.loading import load_models
from msf_serve.engine.plan_cache import PlanCache
from msf_serve.engine.repository import ModelVersion, find_models
from msf_serve.scheduler.connection import check, connect
from msf_serve.scheduler.jobs import WorkerInfo
from msf_serve.scheduler.policy import BatchingPolicy, StepLevel
from msf_serve.scheduler.request_level import RequestLevel
from msf_serve.tracing import Tracing, TracingUnavailable
from msf_serve.worker.endpoint import Endpoint
from msf_serve.worker.errors import WorkerError
from msf_serve.worker.faults import FaultyRunner
from msf_serve.worker.metrics import WorkerMetrics
from msf_serve.worker.runner import ModelRunner
from msf_serve.worker.service import Worker
from msf_serve.worker.settings import WorkerSettings
from msf_serve.worker.trace import Trace


async def run_worker(settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises QueueUnavailable when Redis cannot be used at the start, EngineError, WorkerError for a bad setting, and
    StepTimeout when the device hangs.
    """
    try:
        tracing = Tracing("msf-worker", settings.otlp_endpoint) if settings.otlp_endpoint else None
    except TracingUnavailable as error:
        raise WorkerError(f"MSF_OTLP_ENDPOINT: {error}") from error
    redis = connect(settings.redis_url)
    try:
        await check(redis)
        metrics = WorkerMetrics(settings.num_slots)
        metrics.watch(asyncio.get_running_loop())
        if torch.cuda.is_available():
            metrics.watch_gpu(torch.cuda.mem_get_info)
        endpoint = _listen(metrics, settings.metrics_port) if settings.metrics_port else None
        loading = asyncio.create_task(asyncio.to_thread(load_runners, settings))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            os._exit(0)  # the compilation of a plan cannot be interrupted, and nothing has been claimed yet
        stopping.cancel()
        backend, runners = loading.result()
        host = socket.gethostname()
        info = WorkerInfo(
            id=f"{host}-{os.getpid()}-{secrets.token_hex(4)}",
            host=host,
            pid=os.getpid(),
            backend=backend,
            num_slots=settings.num_slots,
            models=tuple(runner.info() for runner in runners),
        )
        for runner in runners:
            plans = runner.executor.plans
            metrics.describe(
                runner.key, backend.partition(" ")[0], runner.fingerprint, plans.num_loaded, plans.num_built
            )
        if endpoint is not None:
            endpoint.is_ready = True
        worker = Worker(
            info,
            runners,
            redis,
            metrics,
            lease_s=settings.lease_s,
            result_ttl_s=settings.result_ttl_s,
            drain_timeout_s=settings.drain_timeout_s,
            step_timeout_s=settings.step_timeout_s,
            policy=_policy(settings),
            trace=Trace(settings.trace_dir, info.id) if settings.trace_dir else None,
            tracing=tracing,
        )
        await worker.run(stop)
    finally:
        if tracing is not None:
            tracing.close()
        await redis.aclose()


def _listen(metrics: WorkerMetrics, port: int) -> Endpoint:
    try:
        return Endpoint(metrics.registry, port)
    except OSError as error:
        raise WorkerError(f"metrics port {port}: cannot listen there: {error.strerror}") from error


def load_runners(settings: WorkerSettings) -> tuple[str, list[ModelRunner]]:
    """Every version of every model, its plans loaded or compiled and run once; and what runs them."""
    versions = find_models(settings.model_repo)
    plan_cache = PlanCache(settings.cache_dir / "plans", settings.plan_cache_bytes)
    backend, plans = load_models(
        versions, settings.backend, settings.precision, settings.num_threads, plan_cache, settings.buckets
    )
    runners = [
        _runner(settings, version, Executor(its_plans, settings.num_slots))
        for version, its_plans in zip(versions, plans, strict=True)
    ]
    for runner in runners:
        runner.warm_up()
    return backend.fingerprint, runners


def _policy(settings: WorkerSettings) -> BatchingPolicy:
    if settings.batching == "request":
        return RequestLevel(settings.batch_size, settings.batch_delay_s)
    return StepLevel()


def _runner(settings: WorkerSettings, version: ModelVersion, executor: Executor) -> ModelRunner:
    if settings.fatal_seed is None and settings.hanging_seed is None:
        return ModelRunner(version, executor)
    runner = FaultyRunner(version, executor)
    runner.fatal_seed, runner.hanging_seed = settings.fatal_seed, settings.hanging_seed
    return runner
