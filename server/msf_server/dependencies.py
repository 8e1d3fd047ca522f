"""What the routes of one server process share."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from msf_scheduler.connection import connect
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.job_events import Watcher
from msf_scheduler.leases import Leases
from msf_scheduler.model_control import DesiredModels
from msf_scheduler.queue import JobQueue
from msf_scheduler.rate_limits import Meter
from msf_scheduler.registry import Registry
from msf_scheduler.reply_reader import ReplyReader
from msf_scheduler.tracing import Tracing
from msf_scheduler.webhook_queue import Webhooks
from msf_server.api_keys import KeyRing
from msf_server.catalog import Catalog
from msf_server.metrics import Metrics
from msf_server.settings import ServerSettings
from msf_server.signed_urls import UrlSigner

logger = logging.getLogger(__name__)

RESTART_READER_S = 1.0
SWEEP_EVERY_S = 1.0  # how late the end of a job that waits past its deadline may be told


@dataclass
class ServerContext:
    """Whoever stops the process sets `draining` first: readiness goes red and new work is refused."""

    settings: ServerSettings
    redis: Redis
    queue: JobQueue
    registry: Registry
    replies: ReplyReader
    watcher: Watcher
    url_signer: UrlSigner
    webhooks: Webhooks
    catalog: Catalog
    metrics: Metrics
    meter: Meter
    keys: KeyRing | None
    tracing: Tracing | None
    draining: bool = False


@asynccontextmanager
async def open_context(
    settings: ServerSettings, keys: KeyRing | None, tracing: Tracing | None
) -> AsyncIterator[ServerContext]:
    """Starts whether or not Redis answers: it may come later, and until then requests get 503."""
    redis = connect(settings.redis_url)
    registry = Registry(redis)
    replies = ReplyReader(redis, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    queue = JobQueue(redis, max_queued_samples=settings.max_queued_samples, result_ttl_s=settings.result_ttl_s)
    catalog = Catalog(registry, DesiredModels(redis), worker_absence_s=settings.worker_absence_s)
    leases = Leases(redis, result_ttl_s=settings.result_ttl_s)
    metrics = Metrics(asyncio.get_running_loop())
    tasks = [asyncio.create_task(_read_for_ever(replies)), asyncio.create_task(_sweep_for_ever(leases, metrics))]
    try:
        yield ServerContext(
            settings=settings,
            redis=redis,
            queue=queue,
            registry=registry,
            replies=replies,
            watcher=Watcher(redis, replies),
            url_signer=UrlSigner(redis),
            webhooks=Webhooks(redis),
            catalog=catalog,
            metrics=metrics,
            meter=Meter(redis),
            keys=keys,
            tracing=tracing,
        )
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await redis.aclose()


async def _read_for_ever(replies: ReplyReader) -> None:
    """Without its reader no request would ever be answered, so not even a bug may end it."""
    while True:
        try:
            await replies.run()
        except Exception:
            logger.exception("the reply reader failed and starts again")
            await asyncio.sleep(RESTART_READER_S)


async def _sweep_for_ever(leases: Leases, metrics: Metrics) -> None:
    """Workers do it too; without any, jobs must still end at their deadlines."""
    while True:
        await asyncio.sleep(SWEEP_EVERY_S)
        try:
            metrics.observe_sweep(await leases.sweep())
        except QueueUnavailable:
            continue
        except Exception:
            logger.exception("a sweep of the queues failed")


def _context(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(_context)]
