"""The outermost ASGI layers: an id and an answer for every request, and a bound on what is read of it."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_serve.server.errors import BodyTooLarge, respond, translate

logger = logging.getLogger(__name__)

LOGGED = "/v1/"  # not what probes and Prometheus ask every few seconds
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


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
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
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
    logger.info(shown + (f", job {job_id}" if job_id else ""), extra=told)


class BodyLimit:
    """Stops reading a body at `max_body_bytes`, whether its length was announced or comes in chunks."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if announced.isdecimal():
                self._check(int(announced))
            message = await receive()
            num_bytes += len(message.get("body", b""))
            self._check(num_bytes)
            return message

        await self.app(scope, receive_limited, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_body_bytes:
            raise BodyTooLarge(f"The body is too large. Allowed: {self.max_body_bytes} bytes.")
