"""`msf serve`: the HTTP server in the foreground, with its workers and, unless it is given a Redis, a Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import click
import uvicorn
import uvloop
from fastapi import FastAPI

from msf_cli.logs import configure_logging
from msf_cli.setting_options import ServeCommand
from msf_cli.settings import Settings, read, worker_environment
from msf_cli.setup_checks import require_models, require_package
from msf_cli.supervisor import Supervisor
from msf_scheduler.connection import RedisClient, check, connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.leases import Leases
from msf_scheduler.model_control import ModelControl, VersionState
from msf_scheduler.registry import Registry
from msf_scheduler.tracing import TracingUnavailable
from msf_server.app import create_app, prepare
from msf_server.middleware.http_protocol import server_config
from msf_server.settings import ServerOptions, ServerSettings

logger = logging.getLogger(__name__)

GRACEFUL_SHUTDOWN_S = 30  # for requests in progress


@click.command(cls=ServeCommand)
def command(flags: dict[str, str]) -> None:
    """Serve images over HTTP until SIGINT or SIGTERM.

    Starts MSF_WORKERS workers and, unless MSF_REDIS_URL is set, a Valkey that keeps its data in MSF_DATA_DIR. They end
    when this process ends, however it ends. A flag takes precedence over its variable, which workers get too.
    """
    settings = read(Settings, flags)
    configure_logging(settings.log_level, "server", settings.log_format)
    if settings.workers:
        require_package("serve with MSF_WORKERS above 0", "msf_worker")
        require_models(settings.model_repo)
    try:
        with contextlib.ExitStack() as stack:
            listeners = [stack.enter_context(_bind(settings.host, settings.port))]
            if settings.metrics_port:
                listeners.append(stack.enter_context(_bind(settings.host, settings.metrics_port, "MSF_METRICS_PORT")))
            redis_url = settings.redis_url or _start_valkey(settings.data_dir, stack)
            exit_status = uvloop.run(_serve(settings, worker_environment(flags, redis_url), redis_url, listeners))
    except QueueUnavailable as error:
        raise click.ClickException(f"MSF_REDIS_URL: {error}" if settings.redis_url else str(error)) from error
    sys.exit(exit_status)


async def _serve(
    settings: Settings, environment: dict[str, str], redis_url: str, listeners: list[socket.socket]
) -> int:
    started_at = time.monotonic()
    host, port = listeners[0].getsockname()[:2]
    app = _create_app(settings, redis_url, host, port)
    server = _Server(server_config(app, graceful_shutdown_s=GRACEFUL_SHUTDOWN_S))
    async with connect(redis_url) as redis:
        await check(redis)
        supervisor = Supervisor(settings, environment, on_death=partial(_bury, app, redis))
        url = f"http://{_reachable(host)}:{port}"
        announce_task = asyncio.create_task(
            _announce(Registry(redis), ModelControl(redis), supervisor, url, started_at)
        )
        supervisor_task = asyncio.create_task(supervisor.run())
        supervisor_task.add_done_callback(lambda _: server.stop())
        try:
            await server.serve(sockets=listeners)
        finally:
            announce_task.cancel()
            supervisor.stop()
            exit_status = await supervisor_task
    return exit_status


def _create_app(settings: Settings, redis_url: str, host: str, port: int) -> FastAPI:
    options = settings.model_dump(include=set(ServerOptions.model_fields)) | {"host": host, "port": port}
    try:
        app = create_app(ServerSettings(redis_url=redis_url, **options))
    except TracingUnavailable as error:
        raise click.UsageError(f"MSF_OTLP_ENDPOINT={settings.otlp_endpoint}: {error}") from error
    except ValueError as error:
        raise click.UsageError(f"MSF_API_KEYS_FILE={error}") from error
    if settings.api_keys_file is None and not ip_address(host).is_loopback:
        logger.warning(
            "anyone who reaches %s port %d can use this service: MSF_API_KEYS_FILE is not set (msf keys new)",
            host,
            port,
        )
    prepare(app)
    return app


class _Server(uvicorn.Server):
    """uvicorn that reports itself not ready before it stops accepting."""

    def handle_exit(self, sig: int, frame: object) -> None:
        self.stop()

    def stop(self) -> None:
        services = getattr(self.config.app.state, "services", None)  # type: ignore[union-attr]
        if services is not None:
            services.submission.draining = True
        self.should_exit = True


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
        raise click.ClickException(f"MSF_DATA_DIR={data_dir}: {error.strerror}") from error


def _bind(host: str, port: int, variable: str = "MSF_PORT") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm, 40 ms per answer, only on sockets created as TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # another process could still bind a port that is only bound
    except OSError as error:
        listener.close()
        raise click.ClickException(f"MSF_HOST={host} {variable}={port}: cannot listen: {error.strerror}") from error
    return listener


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
