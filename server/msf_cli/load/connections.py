"""Connections that stay cheap when hundreds of requests are under way."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

import httpx

# Below the 5 s after which servers such as uvicorn close an idle connection, or a request would meet a closing one.
KEEPALIVE_S = 2.0
ONE = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S)


class Connections(httpx.AsyncBaseTransport):
    """As many connections as there are requests under way, or `max_connections` at most.

    httpx's own pool looks at each of its connections for each request: at a hundred under way that took 20 ms a
    request, and the generator measured itself. Here each connection has a pool of its own. Answers are read whole.
    """

    def __init__(self, max_connections: int | None = None) -> None:
        self._room: AbstractAsyncContextManager[None] = (
            nullcontext() if max_connections is None else asyncio.Semaphore(max_connections)
        )
        self._tls = httpx.create_ssl_context()
        self._idle: list[httpx.AsyncHTTPTransport] = []  # the latest last: it is the least likely to have been closed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async with self._room:
            connection = self._idle.pop() if self._idle else httpx.AsyncHTTPTransport(verify=self._tls, limits=ONE)
            try:
                response = await connection.handle_async_request(request)
                await response.aread()
            except BaseException:
                await connection.aclose()
                raise
            self._idle.append(connection)
            return response

    async def aclose(self) -> None:
        for connection in self._idle:
            await connection.aclose()
