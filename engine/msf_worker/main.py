"""A worker process: loads the models of the repository, warms them up and serves."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys

from msf_engine.device import has_gpu
from msf_scheduler.connection import check, connect
from msf_scheduler.jobs import WorkerInfo
from msf_scheduler.model_control import ModelControl
from msf_scheduler.queue import JobQueue
from msf_scheduler.tracing import Tracing, TracingUnavailable
from msf_worker.errors import WorkerError
from msf_worker.gpu_metrics import watch_gpu
from msf_worker.metrics import WorkerMetrics
from msf_worker.metrics_server import MetricsServer
from msf_worker.model_loader import ModelLoader
from msf_worker.model_manager import ModelManager
from msf_worker.repository_poll import RepositoryPoll
from msf_worker.settings import WorkerSettings
from msf_worker.waiting import first_done
from msf_worker.worker import Worker

SWITCH_INTERVAL_S = 0.0005  # the event loop must not keep the device's thread, and the device, waiting for longer


async def run_worker(
    settings: WorkerSettings, redis_url: str, stop: asyncio.Event, hurry: asyncio.Event, *, is_restart: bool = False
) -> None:
    """Serve until `stop` is set, and drain until `hurry` is.

    A worker that `is_restart` waits for a load request if no model can be served.

    Raises QueueUnavailable if Redis cannot be used at the start, EngineError, WorkerError for a bad setting, and
    StepTimeout when the device hangs.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    tracing = _start_tracing(settings.otlp_endpoint)
    redis = connect(redis_url)
    try:
        await check(redis)
        metrics = WorkerMetrics()
        metrics.count_tasks(asyncio.get_running_loop())
        if has_gpu():
            watch_gpu(metrics.registry)
        metrics_server = _serve_metrics(metrics, settings.worker_metrics_port)
        control = ModelControl(redis)
        revision, desired_versions = await control.read()
        loader = ModelLoader(settings)
        loading = asyncio.create_task(asyncio.to_thread(loader.load_first, desired_versions, may_be_none=is_restart))
        await first_done(loading, stop.wait())
        if not loading.done():
            os._exit(0)  # compiling a plan cannot be interrupted, and nothing has been claimed yet
        first = loading.result()
        host, pid = socket.gethostname(), os.getpid()
        info = WorkerInfo(
            id=f"{host}-{pid}-{secrets.token_hex(4)}",
            host=host,
            pid=pid,
            backend=next((runner.executor.plans.backend for runner in first.runners), "none"),
            num_slots=settings.slots,
            models=tuple(runner.info() for runner in first.runners),
        )
        worker = Worker(settings, info, first.runners, redis, metrics, tracing)
        poll = RepositoryPoll(settings.model_repo) if settings.model_control_mode == "poll" else None
        manager = ModelManager(loader, control, JobQueue(redis), worker.models, worker.device, metrics, poll)
        manager.resume(first, revision)
        if metrics_server is not None:
            metrics_server.is_ready = True
        await first_done(worker.run(stop, hurry), manager.run())
    finally:
        if tracing is not None:
            tracing.close()
        await redis.aclose()
    if manager.is_loading or worker.device.busy_since is not None:
        os._exit(0)  # as above; a batch under way cannot be interrupted either, and its jobs are handed back


def _start_tracing(otlp_endpoint: str | None) -> Tracing | None:
    try:
        return Tracing("msf-worker", otlp_endpoint) if otlp_endpoint else None
    except TracingUnavailable as error:
        raise WorkerError(f"MSF_OTLP_ENDPOINT: {error}") from error


def _serve_metrics(metrics: WorkerMetrics, port: int) -> MetricsServer | None:
    try:
        return MetricsServer(metrics.registry, port) if port else None
    except OSError as error:
        raise WorkerError(f"MSF_WORKER_METRICS_PORT={port}: cannot listen: {error.strerror}") from error
