"""Server-sent events (HTML standard, section 9.2): how they look, and that a silent stream is not a dead one."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from msf_server.errors import error_response, translate

HEARTBEAT_S = 15.0  # proxies close what is silent for a minute or so
_HEARTBEAT = b": still here\n\n"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # nginx would hold events back


class EventStream(StreamingResponse):
    def __init__(self, frames: AsyncIterator[bytes]) -> None:
        super().__init__(frames, media_type="text/event-stream", headers=_HEADERS)


def frame(event: str, data: BaseModel, event_id: str | None = None) -> bytes:
    """One event; JSON has no line breaks."""
    name = f"id: {event_id}\n" if event_id else ""
    return f"{name}event: {event}\ndata: {data.model_dump_json()}\n\n".encode()


def error_frame(error: Exception) -> bytes:
    """What cannot be a status any more, as the answer has begun."""
    return frame("error", error_response(translate(error)))


class Pulse:
    """Puts a comment where there was nothing to tell for HEARTBEAT_S."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def beat(self, frames: Sequence[bytes]) -> bytes:
        """The frames, a heartbeat if it is due, or nothing."""
        now = time.monotonic()
        if not frames and now - self._told_at < HEARTBEAT_S:
            return b""
        self._told_at = now
        return b"".join(frames) or _HEARTBEAT
