"""Server-sent events: named events with ids, and a heartbeat, so that proxies keep a silent stream open."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from pydantic import BaseModel

from msf_server.errors import error_response, translate

HEARTBEAT_S = 15.0  # proxies close connections that are silent for about a minute
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back


def event_stream(frames: AsyncGenerator[bytes, None]) -> EventSourceResponse:
    """Return the answer that sends `frames`, in which empty ones mark that the producer is alive."""
    return EventSourceResponse(_with_heartbeat(frames), headers=_HEADERS)


def frame(event: str, data: BaseModel | bytes, event_id: str | None = None) -> bytes:
    """Encode one server-sent event; `data` is a model or its JSON, which has no line ends."""
    content = data if isinstance(data, bytes) else data.model_dump_json().encode()
    name, number = f"event: {event}\ndata: ".encode(), f"id: {event_id}\n".encode() if event_id else b""
    return b"".join((name, content, b"\n", number, b"\n"))


def error_frame(error: Exception) -> bytes:
    """Return the event for an error that occurs after the status line has been sent."""
    return frame("error", error_response(translate(error)))


async def _with_heartbeat(frames: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    sent_at = time.monotonic()
    async with aclosing(frames):
        async for chunk in frames:
            now = time.monotonic()
            if chunk or now - sent_at >= HEARTBEAT_S:
                sent_at = now
                yield chunk or KEEPALIVE_COMMENT
