"""The outermost ASGI layers: an id and an answer for every request, and bounds on what is read of it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_server.errors import BodyTooLarge, BodyTooSlow, HeadersTooLarge, respond, translate
from msf_server.middleware.http_protocol import MAX_HEAD_BYTES

logger = logging.getLogger(__name__)

LOGGED = ("/v1/", "/v2/models/", "/v2/repository/")  # not what probes and Prometheus ask every few seconds
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)

_ON_EVERY_ANSWER = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # the pages have their own
    "Cross-Origin-Resource-Policy": "same-origin",
}
MAX_HEADERS = 64


class Edge:
    """Gives every answer an `x-request-id` (the caller's own if plain), and every exception an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        status = 0
        scope.setdefault("state", {})["job_id"] = None  # for the route to fill in
        started_at = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                for name, value in _ON_EVERY_ANSWER.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            _check_head(scope)
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # in the midst of its body
        except HeadersTooLarge as error:
            await respond(error, scope["path"])(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise
            logger.exception("%s %s failed, x-request-id %s", scope["method"], scope["path"], request_id)
            await respond(translate(error), scope["path"])(scope, receive, send_with_id)
        finally:
            if scope["path"].startswith(LOGGED):
                _log(scope, request_id, status, time.perf_counter() - started_at)


def _log(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    job_id = scope["state"]["job_id"]
    told = {"request_id": request_id, "job_id": job_id, "status": status, "duration_ms": round(1000 * seconds, 1)}
    shown = f"{scope['method']} {scope['path']}: {status} in {told['duration_ms']} ms, {request_id}"
    level = logging.DEBUG if scope["method"] == "GET" else logging.INFO  # those that wait for a job ask often
    logger.log(level, shown + (f", job {job_id}" if job_id else ""), extra=told)


def _check_head(scope: Scope) -> None:
    """The server bounds what it buffers; headers that come in one piece are never buffered."""
    headers = scope["headers"]
    num_bytes = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in headers)
    if len(headers) > MAX_HEADERS or num_bytes > MAX_HEAD_BYTES:
        raise HeadersTooLarge(
            f"There are {len(headers)} headers, with the path {num_bytes} bytes. "
            f"Allowed: {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes."
        )


class BodyLimit:
    """Stops reading a body at `max_body_bytes`, announced or not, and `body_timeout_s` after its headers came."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_timeout_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        num_bytes = 0
        deadline: float | None = asyncio.get_running_loop().time() + self.body_timeout_s

        async def receive_limited() -> Message:
            nonlocal num_bytes, deadline
            if announced.isdecimal():
                self._check(int(announced))
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise BodyTooSlow(
                    f"The body did not come in time. Allowed: {self.body_timeout_s:g} seconds."
                ) from error
            if not message.get("more_body", False):
                deadline = None  # what else comes is that the caller goes away
            num_bytes += len(message.get("body", b""))
            self._check(num_bytes)
            return message

        await self.app(scope, receive_limited, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_body_bytes:
            raise BodyTooLarge(f"The body is too large. Allowed: {self.max_body_bytes} bytes.")
