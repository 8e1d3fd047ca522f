"""ASGI layer that limits the size of request bodies and the time they take to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest


class BodyLimit:
    """Stops reading a body at `max_body_bytes`, announced or received, and `body_timeout_s` after the headers."""

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
                raise InvalidRequest(
                    f"The body did not arrive in time. Allowed: {self.body_timeout_s:g} seconds.",
                    code=ErrorCode.BODY_TOO_SLOW,
                ) from error
            if not message.get("more_body", False):
                deadline = None  # the next message is the caller's disconnect
            num_bytes += len(message.get("body", b""))
            self._check(num_bytes)
            return message

        await self.app(scope, receive_limited, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self.max_body_bytes:
            raise InvalidRequest(
                f"The body is too large. Allowed: {self.max_body_bytes} bytes.", code=ErrorCode.BODY_TOO_LARGE
            )
