"""Services of one server process, and the parameters through which routes receive them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from msf_scheduler.aliases import Aliases
from msf_scheduler.connection import RedisClient, connect
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.job_events import JobWatcher
from msf_scheduler.leases import Leases
from msf_scheduler.model_control import ModelControl
from msf_scheduler.queue import JobQueue
from msf_scheduler.rate_limits import UsageMeter
from msf_scheduler.registry import Registry
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.tracing import Tracing
from msf_scheduler.webhook_queue import WebhookQueue
from msf_server.api_keys import KeyRing
from msf_server.callers import Caller, identify
from msf_server.catalog import Catalog
from msf_server.drain import Drain
from msf_server.metrics import Metrics
from msf_server.settings import ServerSettings
from msf_server.signed_urls import UrlSigner
from msf_server.submission import Submission
from msf_server.webhook_delivery import Deliverer

logger = logging.getLogger(__name__)

RESTART_READER_S = 1.0
SWEEP_EVERY_S = 1.0  # a job that waits past its deadline ends at most this late


@dataclass
class Services:
    """Everything that the routes of one process share, as `app.state.services`."""

    settings: ServerSettings
    redis: RedisClient
    queue: JobQueue
    registry: Registry
    watcher: JobWatcher
    url_signer: UrlSigner
    model_control: ModelControl
    aliases: Aliases
    catalog: Catalog
    metrics: Metrics
    meter: UsageMeter
    keys: KeyRing | None
    submission: Submission
    drain: Drain


@asynccontextmanager
async def open_services(
    settings: ServerSettings, keys: KeyRing | None, tracing: Tracing | None, drain: Drain
) -> AsyncIterator[Services]:
    """Run the services and their background tasks; until Redis answers, requests get 503."""
    redis = connect(settings.redis_url)
    registry = Registry(redis)
    replies = ReplyReader(redis, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    queue = JobQueue(
        redis,
        max_queued_samples=settings.max_queued_samples,
        result_ttl_s=settings.result_ttl_s,
        max_stored_jobs=settings.max_stored_jobs,
        max_pending_webhooks=settings.max_pending_webhooks,
    )
    meter = UsageMeter(redis)
    model_control = ModelControl(redis)
    aliases = Aliases(redis)
    metrics = Metrics(asyncio.get_running_loop())
    background = [_read_replies(replies), _sweep(Leases(redis, result_ttl_s=settings.result_ttl_s), metrics)]
    if settings.webhook_secret:
        background.append(Deliverer(WebhookQueue(redis), queue, metrics, settings).run())
    tasks = [asyncio.create_task(each) for each in background]
    try:
        yield Services(
            settings=settings,
            redis=redis,
            queue=queue,
            registry=registry,
            watcher=JobWatcher(redis, replies),
            url_signer=UrlSigner(redis, settings.result_ttl_s),
            model_control=model_control,
            aliases=aliases,
            catalog=Catalog(registry, model_control, aliases, worker_absence_s=settings.worker_absence_s),
            metrics=metrics,
            meter=meter,
            keys=keys,
            submission=Submission(queue, replies, meter, metrics, tracing, drain),
            drain=drain,
        )
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await redis.aclose()


async def _read_replies(replies: ReplyReader) -> None:
    """Read replies until cancelled; without its reader, no request would be answered, so not even a bug may end it."""
    while True:
        try:
            await replies.run()
        except Exception:
            logger.exception("the reply reader failed; restarting it")
            await asyncio.sleep(RESTART_READER_S)


async def _sweep(leases: Leases, metrics: Metrics) -> None:
    """Sweep the queues until cancelled; workers do so too, but jobs must meet their deadlines without any."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        try:
            metrics.observe_sweep(await leases.sweep())
        except QueueUnavailable:
            continue
        except Exception:
            logger.exception("a sweep of the queues failed")


def services_of(request: Request) -> Services:
    """Return the services; for the busiest routes, where FastAPI takes longer to provide them one by one."""
    services: Services = request.app.state.services
    return services


def _service(select: Callable[[Services], Any]) -> Any:
    async def provide(request: Request) -> Any:
        return select(services_of(request))

    return Depends(provide)


async def _caller(request: Request) -> Caller:
    return identify(request)


SettingsDep = Annotated[ServerSettings, _service(lambda services: services.settings)]
RedisDep = Annotated[RedisClient, _service(lambda services: services.redis)]
QueueDep = Annotated[JobQueue, _service(lambda services: services.queue)]
RegistryDep = Annotated[Registry, _service(lambda services: services.registry)]
WatcherDep = Annotated[JobWatcher, _service(lambda services: services.watcher)]
UrlSignerDep = Annotated[UrlSigner, _service(lambda services: services.url_signer)]
CatalogDep = Annotated[Catalog, _service(lambda services: services.catalog)]
ModelControlDep = Annotated[ModelControl, _service(lambda services: services.model_control)]
AliasesDep = Annotated[Aliases, _service(lambda services: services.aliases)]
MetricsDep = Annotated[Metrics, _service(lambda services: services.metrics)]
MeterDep = Annotated[UsageMeter, _service(lambda services: services.meter)]
KeyRingDep = Annotated[KeyRing | None, _service(lambda services: services.keys)]
DrainDep = Annotated[Drain, _service(lambda services: services.drain)]
SubmissionDep = Annotated[Submission, _service(lambda services: services.submission)]

CallerDep = Annotated[Caller, Depends(_caller)]
