"""uvicorn's HTTP protocol with limits on connections, heads, pipelining, and the time that a client may take.

`body_limit.py` limits bodies, `caller_limits.py` what one caller holds.
"""

from __future__ import annotations

import asyncio
import resource

import httptools
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import ApiError, InvalidRequest, error_response

MAX_HEAD_BYTES = 16 * 1024  # request line and headers
MAX_HEADERS = 64
MAX_UNPARSED_BYTES = 2 * MAX_HEAD_BYTES  # of a head whose end has not arrived, with separators and spaces
MAX_PIPELINED = 32  # requests that wait on a connection for the answer before theirs
MAX_CONNECTIONS = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2)  # of the process
MAX_CONNECTIONS_OF_ADDRESS = MAX_CONNECTIONS // 2  # proxies that the server trusts may have all
KEEP_ALIVE_S = 5.0  # idle time between two requests
HEAD_S = 15.0  # from the connection, or the last answer, to the end of the next headers
ANSWER_S = 120.0  # for a client that stopped reading while its answer is buffered
LINGER_S = 2.0  # in which a refused client may read why, before unread data would reset the connection

ABORT = "msf.abort"  # extension of the ASGI scope, with a function that ends the connection at once


class GuardedProtocol(HttpToolsProtocol):
    """Adds limits to uvicorn's protocol, which waits indefinitely for slow or endless heads and slow readers.

    Offers to upgrade a connection are ignored, and a malformed request is answered after those before it.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._is_in_head = True
        self._is_over = False  # nothing more is read
        self._head_bytes = 0  # received of a head whose end has not arrived
        self._answering: RequestResponseCycle | None = None  # the latest request that the application has seen
        self._refusal: ApiError | None = None  # sent once the requests before it are answered
        self._head_timer: asyncio.TimerHandle | None = None
        self._answer_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._await_head()
        if not self._make_room():
            self._refuse(
                ApiError("Too many connections are open.", code=ErrorCode.RATE_LIMIT_EXCEEDED, retry_after_s=1)
            )

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._unset_keepalive_if_required()
        self._head_bytes += len(data) if self._is_in_head else 0
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ApiError) else InvalidRequest("The request is not valid HTTP/1.1."))
        else:
            if self._head_bytes > MAX_UNPARSED_BYTES:
                self._refuse(head_too_large())

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                data = head + data[offer.args[0] :]
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """Return the head of the latest request as it is to be read: the parser skips the body of an upgrade."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        headers = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(headers))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"abort": self.transport.abort}}

    def on_headers_complete(self) -> None:
        if self.parser.get_method() == b"CONNECT":
            raise InvalidRequest("CONNECT is not supported; this server is no proxy.")
        if self.parser.should_upgrade():
            return  # `_parse` reads the head again
        if len(self.pipeline) >= MAX_PIPELINED:
            raise InvalidRequest(f"Too many requests are pipelined. Allowed: {MAX_PIPELINED} unanswered ones.")
        self._is_in_head, self._head_bytes = False, 0
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle

    def on_message_complete(self) -> None:
        if not self._is_in_head:
            self._is_in_head = True
            super().on_message_complete()

    def on_response_complete(self) -> None:
        self._await_head()  # first: the next request may have arrived already
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()
        if self._refusal is not None and not self._is_answering():
            self._send_refusal(self._refusal)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer_timer = self.loop.call_later(ANSWER_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._answer_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._answer_timer, self._linger_timer):
            _stop(timer)
        if self._is_answering():  # uvicorn tells only the last request of a pipeline
            self._disconnect(self._answering)
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        cycle = self._answering
        return cycle is not None and not cycle.response_complete and not cycle.disconnected

    def _disconnect(self, cycle: RequestResponseCycle | None) -> None:
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()

    def _refuse(self, error: ApiError) -> None:
        """Stop reading, and answer `error` once the requests before are answered."""
        self._is_over = True
        if not self._is_in_head:  # the body of the latest request is malformed
            if self.cycle.response_started:
                self.transport.close()  # it was refused before; another answer would belong to no request
                return
            if self.cycle is self._answering:
                self._disconnect(self.cycle)
            else:
                self.pipeline.popleft()
        self._refusal = error
        if not self._is_answering():
            self._send_refusal(error)

    def _send_refusal(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        body = error_response(error).model_dump_json().encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in ({**(error.headers or {}), **headers}).items())
        self.transport.write(STATUS_LINE[error.status_code] + lines.encode() + b"\r\n" + body)
        self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _await_head(self) -> None:
        _stop(self._head_timer)
        self._head_timer = self.loop.call_later(HEAD_S, self._give_up, self.cycle)

    def _give_up(self, last: object) -> None:
        if self.cycle is last:  # no request has started since
            self.transport.close()

    def _make_room(self) -> bool:
        """Keep connections within their limits, at the cost of the one that has sent no request for longest."""
        if len(self.connections) <= MAX_CONNECTIONS_OF_ADDRESS:
            return True
        address = self.client and self.client[0]
        is_proxy = isinstance(self.app, ProxyHeadersMiddleware) and address in self.app.trusted_hosts
        protocols = [other for other in self.connections if isinstance(other, GuardedProtocol)]
        rivals, limit = protocols, MAX_CONNECTIONS
        if not is_proxy and len(protocols) > MAX_CONNECTIONS_OF_ADDRESS:
            own = [other for other in protocols if other.client and other.client[0] == address]
            if len(own) > MAX_CONNECTIONS_OF_ADDRESS:
                rivals, limit = own, MAX_CONNECTIONS_OF_ADDRESS
        if len(rivals) <= limit:
            return True
        idle = [other for other in rivals if other is not self and not other._is_answering() and other._head_timer]
        if not idle:
            return False
        min(idle, key=lambda other: other._head_timer.when() if other._head_timer else 0.0).transport.abort()
        return True


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def head_too_large() -> InvalidRequest:
    """Return the refusal of a head, whose size is not told: it depends on how much of it has arrived."""
    return InvalidRequest(
        f"The target and headers are too large. Allowed: {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes.",
        code=ErrorCode.HEADERS_TOO_LARGE,
    )


def abort_connection(scope: Scope) -> None:
    """End the connection of a request at once, if its server can."""
    if ABORT in scope.get("extensions", {}):
        scope["extensions"][ABORT]["abort"]()


def server_config(app: ASGIApp, *, graceful_shutdown_s: int | None = None) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`, with limits on slow and large requests."""
    _allow_connections()
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


def _allow_connections() -> None:
    """Raise the soft limit on open files to the hard one, as far as MAX_CONNECTIONS needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * MAX_CONNECTIONS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * MAX_CONNECTIONS, hard), hard))
