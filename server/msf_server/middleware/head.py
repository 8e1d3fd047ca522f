"""ASGI layer that answers HEAD as GET, without the body."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Calls the application with GET and ends the answer after its headers; a stream ends as if its reader had left."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        is_answered = asyncio.Event()

        async def receive_until_answered() -> Message:
            arrival = asyncio.ensure_future(receive())
            answered = asyncio.ensure_future(is_answered.wait())
            try:
                await asyncio.wait((arrival, answered), return_when=asyncio.FIRST_COMPLETED)
                return arrival.result() if arrival.done() else {"type": "http.disconnect"}
            finally:
                arrival.cancel()
                answered.cancel()

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.start":
                return
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            is_answered.set()

        await self.app({**scope, "method": "GET"}, receive_until_answered, send_head)
