"""`msf serve`: the HTTP server in the foreground, with its workers and, unless it is given a Redis, a Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import click
import uvloop
from fastapi import FastAPI

from msf_cli.http_server import HttpServer, listen
from msf_cli.logs import configure_logging
from msf_cli.setting_options import ServeCommand
from msf_cli.settings import PRIVATE_UMASK, Settings, read, worker_environment
from msf_cli.setup_checks import IncompleteSetup, require_models, require_package, require_worker_folders
from msf_cli.stop_signals import handle_stop_signals
from msf_cli.supervisor import Supervisor
from msf_scheduler.connection import RedisClient, check, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.leases import Leases
from msf_scheduler.model_control import ModelControl, VersionState
from msf_scheduler.registry import Registry
from msf_scheduler.tracing import TracingUnavailable
from msf_server.app import create_app, prepare
from msf_server.settings import ServerOptions, ServerSettings

logger = logging.getLogger(__name__)

HURRIED_HAND_BACK_S = 1.0


@click.command(cls=ServeCommand)
def command(flags: dict[str, str]) -> None:
    """Serve images over HTTP until SIGINT, SIGTERM or SIGHUP; a second SIGINT or SIGTERM ends it at once.

    Starts MSF_WORKERS workers and, unless MSF_REDIS_URL is set, a Valkey that keeps its data in MSF_DATA_DIR. They end
    when this process ends, however it ends. A flag takes precedence over its variable, which workers get too.
    """
    settings = read(Settings, flags)
    configure_logging(settings.log_level, "server", settings.log_format)
    os.umask(PRIVATE_UMASK)
    if settings.workers:
        require_package("serve with MSF_WORKERS above 0", "msf_worker")
        require_models(settings.model_repo)
        require_worker_folders(settings)
    try:
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(listen(settings.host, settings.port))]
            if settings.metrics_port:
                listeners.append(stack.enter_context(listen(settings.host, settings.metrics_port, "MSF_METRICS_PORT")))
            if settings.grpc_port:
                listen(settings.host, settings.grpc_port, "MSF_GRPC_PORT").close()  # gRPC binds it itself
                os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # workers are started, never forked
                for package in ("grpc", "tritonclient"):
                    require_package("serve with MSF_GRPC_PORT", package, extra="grpc")
            redis_url = settings.redis_url or _start_valkey(settings.data_dir, stack)
            exit_status = uvloop.run(_serve(settings, worker_environment(flags, redis_url), redis_url, listeners))
    except QueueUnavailable as error:
        raise IncompleteSetup(f"MSF_REDIS_URL: {error}" if settings.redis_url else str(error)) from error
    sys.exit(exit_status)


async def _serve(
    settings: Settings, environment: Mapping[str, str], redis_url: str, listeners: Sequence[socket.socket]
) -> int:
    started_at = time.monotonic()
    host, port = listeners[0].getsockname()[:2]
    app = _create_app(settings, redis_url, host, port)
    server = HttpServer(app, settings.drain_timeout_s)
    async with connect(redis_url) as redis:
        await check(redis)
        supervisor = Supervisor(settings, environment, on_death=partial(_bury, app, redis))
        exit_status, drain_until = 0, float("inf")

        def drain() -> None:
            nonlocal drain_until
            drain_until = time.monotonic() + settings.drain_timeout_s
            logger.info("draining for at most %g s; a second signal ends at once", settings.drain_timeout_s)
            server.stop()

        def end(number: int) -> None:
            nonlocal exit_status
            exit_status = 128 + number
            server.cut_short()
            supervisor.hurry(HURRIED_HAND_BACK_S)

        handle_stop_signals(drain, end)
        url = f"http://{_reachable(host)}:{port}"
        announce_task = asyncio.create_task(
            _announce(Registry(redis), ModelControl(redis), supervisor, url, started_at)
        )
        supervisor_task = asyncio.create_task(supervisor.run())
        supervisor_task.add_done_callback(lambda _: server.stop())
        try:
            await server.serve(sockets=list(listeners))
        finally:
            announce_task.cancel()
            supervisor.stop(max(0.0, min(drain_until - time.monotonic(), settings.drain_timeout_s)))
            supervisor_status = await supervisor_task
    return exit_status or supervisor_status


def _create_app(settings: Settings, redis_url: str, host: str, port: int) -> FastAPI:
    options = settings.model_dump(include=set(ServerOptions.model_fields)) | {"host": host, "port": port}
    try:
        app = create_app(ServerSettings(redis_url=redis_url, **options))
    except TracingUnavailable as error:
        raise IncompleteSetup(f"MSF_OTLP_ENDPOINT={settings.otlp_endpoint}: {error}") from error
    except ValueError as error:
        raise IncompleteSetup(f"MSF_API_KEYS_FILE={error}") from error
    if settings.api_keys_file is None and not ip_address(host).is_loopback:
        logger.warning(
            "anyone who reaches %s port %d can use this service: MSF_API_KEYS_FILE is not set (msf keys new)",
            host,
            port,
        )
    prepare(app)
    return app


async def _announce(
    registry: Registry, control: ModelControl, supervisor: Supervisor, url: str, started_at: float
) -> None:
    """Print the URL once a worker, a supervised one if there are any, serves every version that it can."""
    models = ""
    while not models:
        await asyncio.sleep(0.05)
        with contextlib.suppress(QueueUnavailable):
            ready = [worker for worker in await registry.workers() if supervisor.owns(worker.pid)]
            supervisor.has_served |= bool(ready)
            reports = [
                version
                for report in await control.reports([each.id for each in ready[:1]])
                for version in report.versions
            ]
            if reports and all(version.state is not VersionState.LOADING for version in reports):
                models = ", ".join(f"{model.name} {model.version}" for model in ready[0].models) or "no model"
    seconds = time.monotonic() - started_at
    with contextlib.suppress(OSError):  # nobody reads standard output any more, or its disk is full
        click.echo(f"\n  msf-serve is ready at {url}   ({models}; {seconds:.1f} s)\n")


async def _bury(app: FastAPI, redis: RedisClient, pid: int) -> None:
    """Requeue the jobs of a supervised worker that died, before its lease expires."""
    registry, leases = Registry(redis), Leases(redis)
    with contextlib.suppress(QueueUnavailable):
        for worker in await registry.workers():
            if (worker.host, worker.pid) == (socket.gethostname(), pid):
                buried = await leases.reclaim(worker.id)
                await registry.unregister(worker.id)
                if hasattr(app.state, "services"):
                    app.state.services.metrics.observe_sweep(buried)
                logger.warning("requeued %d jobs of dead worker %s", buried.num_requeued, worker.id)


def _start_valkey(data_dir: Path, stack: contextlib.ExitStack) -> str:
    try:
        return stack.enter_context(EmbeddedValkey(data_dir)).url
    except OSError as error:
        raise IncompleteSetup(f"MSF_DATA_DIR={str(data_dir)!r}: {error.strerror}") from error


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
