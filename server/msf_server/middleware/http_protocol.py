"""uvicorn's HTTP protocol with limits on the size of headers and on the time that a client may take.

`body_limit.py` limits bodies.
"""

from __future__ import annotations

import asyncio
import re

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 16 * 1024  # request line and headers
KEEP_ALIVE_S = 5.0  # idle time between two requests
HEAD_S = 15.0  # from the connection, or the last answer, to the end of the next headers
ANSWER_S = 120.0  # for a client that stopped reading while its answer is buffered

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)  # to WebSockets or HTTP/2; a server may ignore it


class GuardedProtocol(HttpToolsProtocol):
    """Adds limits to uvicorn's protocol, which waits indefinitely for slow or endless headers and slow readers."""

    _is_in_head = True
    _head_bytes = 0  # received of a head whose end has not arrived
    _head_timer: asyncio.TimerHandle | None = None
    _answer_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
            if _UPGRADE.search(data):  # the parser would expect no body
                head, end, rest = data.partition(b"\r\n\r\n")
                data = _UPGRADE.sub(b"\r\nIgnored:", head) + end + rest
        super().data_received(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("The headers are too large.")

    def on_headers_complete(self) -> None:
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._await_head()  # first: the next request may have arrived already
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed body, and report a disconnect to the application that reads it."""
        super().send_400_response(msg)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer_timer = self.loop.call_later(ANSWER_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._answer_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._head_timer)
        _stop(self._answer_timer)
        super().connection_lost(exc)

    def _await_head(self) -> None:
        _stop(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_S, self._give_up, self.cycle)

    def _give_up(self, last: object) -> None:
        if self.cycle is last:  # no request has started since
            self.transport.close()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def server_config(app: ASGIApp, *, graceful_shutdown_s: int | None = None) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`, with limits on slow and large requests."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=int(KEEP_ALIVE_S),
        timeout_graceful_shutdown=graceful_shutdown_s,
    )
