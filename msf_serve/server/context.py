"""What the routes of one server process share."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from redis.asyncio import Redis

from msf_serve.scheduler.connection import connect
from msf_serve.scheduler.queue import JobQueue
from msf_serve.scheduler.registry import Registry
from msf_serve.scheduler.replies import ReplyReader
from msf_serve.server.catalog import Catalog
from msf_serve.server.metrics import Metrics
from msf_serve.server.settings import ServerSettings

logger = logging.getLogger(__name__)

RESTART_READER_S = 1.0


@dataclass
class ServerContext:
    """Whoever stops the process sets `draining` first: readiness goes red and new work is refused."""

    settings: ServerSettings
    redis: Redis
    queue: JobQueue
    registry: Registry
    replies: ReplyReader
    catalog: Catalog
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False


@asynccontextmanager
async def open_context(settings: ServerSettings) -> AsyncIterator[ServerContext]:
    """Starts whether or not Redis answers: it may come later, and until then requests get 503."""
    redis = connect(settings.redis_url)
    registry = Registry(redis)
    replies = ReplyReader(redis, f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    queue = JobQueue(redis, max_queued_samples=settings.max_queued_samples)
    catalog = Catalog(registry, worker_absence_s=settings.worker_absence_s)
    reading = asyncio.create_task(_read_for_ever(replies), name="reply reader")
    try:
        yield ServerContext(settings, redis, queue, registry, replies, catalog)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await redis.aclose()


async def _read_for_ever(replies: ReplyReader) -> None:
    """Without its reader no request would ever be answered, so not even a bug may end it."""
    while True:
        try:
            await replies.run()
        except Exception:
            logger.exception("the reply reader failed and starts again")
            await asyncio.sleep(RESTART_READER_S)


def _context(request: Request) -> ServerContext:
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(_context)]
