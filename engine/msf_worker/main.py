"""A worker process from its settings: load the models of the repository, warm up, serve."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket

import torch

from msf_scheduler.connection import check, connect
from msf_scheduler.dynamic_batching import RequestLevel
from msf_scheduler.jobs import WorkerInfo
from msf_scheduler.model_control import DesiredModels
from msf_scheduler.queue import JobQueue
from msf_scheduler.step_batching import BatchingPolicy, StepLevel
from msf_scheduler.tracing import Tracing, TracingUnavailable
from msf_worker.errors import WorkerError
from msf_worker.metrics import WorkerMetrics
from msf_worker.metrics_server import Endpoint
from msf_worker.model_loader import load_first
from msf_worker.model_manager import Keeper
from msf_worker.perfetto import Trace
from msf_worker.settings import WorkerSettings
from msf_worker.worker import Worker


async def run_worker(settings: WorkerSettings, redis_url: str, stop: asyncio.Event) -> None:
    """Serve until `stop` is set.

    Raises QueueUnavailable when Redis cannot be used at the start, EngineError, WorkerError for a bad setting, and
    StepTimeout when the device hangs.
    """
    try:
        tracing = Tracing("msf-worker", settings.otlp_endpoint) if settings.otlp_endpoint else None
    except TracingUnavailable as error:
        raise WorkerError(f"MSF_OTLP_ENDPOINT: {error}") from error
    redis = connect(redis_url)
    try:
        await check(redis)
        metrics = WorkerMetrics(settings.slots)
        metrics.watch(asyncio.get_running_loop())
        if torch.cuda.is_available():
            metrics.watch_gpu(torch.cuda.mem_get_info)
        endpoint = _listen(metrics, settings.worker_metrics_port) if settings.worker_metrics_port else None
        desired = DesiredModels(redis)
        _, wishes = await desired.read()
        loading = asyncio.create_task(asyncio.to_thread(load_first, settings, wishes))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            os._exit(0)  # the compilation of a plan cannot be interrupted, and nothing has been claimed yet
        stopping.cancel()
        loader, runners = loading.result()
        host = socket.gethostname()
        info = WorkerInfo(
            id=f"{host}-{os.getpid()}-{secrets.token_hex(4)}",
            host=host,
            pid=os.getpid(),
            backend=loader.backend.fingerprint,
            num_slots=settings.slots,
            models=tuple(runner.info() for runner in runners),
        )
        for runner in runners:
            plans = runner.executor.plans
            metrics.describe(runner.key, loader.backend.name, runner.fingerprint, plans.num_loaded, plans.num_built)
        if endpoint is not None:
            endpoint.is_ready = True
        keeper = Keeper(loader, desired, JobQueue(redis), metrics)
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
            keeper=keeper,
        )
        await worker.run(stop)
    finally:
        if tracing is not None:
            tracing.close()
        await redis.aclose()
    if keeper.is_busy:
        os._exit(0)  # as above


def _listen(metrics: WorkerMetrics, port: int) -> Endpoint:
    try:
        return Endpoint(metrics.registry, port)
    except OSError as error:
        raise WorkerError(f"metrics port {port}: cannot listen there: {error.strerror}") from error


def _policy(settings: WorkerSettings) -> BatchingPolicy:
    if settings.batching == "request":
        return RequestLevel(settings.batch_size, settings.batch_delay_s)
    return StepLevel()
