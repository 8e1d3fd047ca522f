"""ASGI layer that limits the size of request bodies and the time they take to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest
from msf_server.middleware.content_coding import decode
from msf_server.middleware.refusal import refuse


class BodyLimit:
    """Reads a body whole before the application runs, so that no answer has started when it proves too large or slow.

    It has at most `max_body_bytes`, announced or received, and arrives within `body_timeout_s` of the headers.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, body_timeout_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if not {"content-length", "transfer-encoding"} & set(headers):
            await self.app(scope, receive, send)
            return
        try:
            self._check(headers.get("content-length", "0"))
            body = await self._read(receive)
            if body is not None:
                body = decode(body, headers, self.max_body_bytes)
        except InvalidRequest as error:
            await refuse(error, scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replaying(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the body, None if the caller disconnects first. Raises InvalidRequest."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while (message := await receive())["type"] == "http.request":
                    body += message.get("body", b"")
                    self._check(str(len(body)))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise InvalidRequest(
                f"The body did not arrive in time. Allowed: {self.body_timeout_s:g} seconds.",
                code=ErrorCode.BODY_TOO_SLOW,
            ) from error
        return None

    def _check(self, num_bytes: str) -> None:
        if not num_bytes.isdecimal() or len(num_bytes) > 18 or int(num_bytes) > self.max_body_bytes:
            raise InvalidRequest(
                f"The body is too large. Allowed: {self.max_body_bytes} bytes.", code=ErrorCode.BODY_TOO_LARGE
            )


def _replaying(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
