"""A load client that costs little: raw HTTP/1.1 over kept-alive connections, in one process, the same for all servers.

The servers share the machine's cores with it. It reads the length and the status of an answer, and no more.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from bench.peers.pipeline import PATH, Body
from msf_cli.load.generator import KEEPALIVE_S
from msf_cli.load.mix import Kind, PlannedRequest
from msf_cli.load.results import RequestOutcome, RequestResult


class HttpConnection(asyncio.Protocol):
    """A connection with at most one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_open = False
        self.idle_since_s = 0.0

    async def post(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body of the answer. Raises ConnectionError."""
        if not self.is_open:
            raise ConnectionResetError("The server closed the connection.")
        self._received.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("The server closed the connection."))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._answer is not None and not self._answer.done():
            answer = complete_answer(bytes(self._received))
            if answer is not None:
                self._answer.set_result(answer)


class PeerClient:
    """Sends image requests to the server at `url`. `template`: its body, with the plain one at `%s`."""

    def __init__(self, url: str, template: str = "%s") -> None:
        self._host, self._port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._head = f"POST {PATH} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        self._template = template
        self._idle: list[HttpConnection] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def post(self, request: PlannedRequest) -> tuple[int, bytes]:
        """Return status and body of the answer. Raises OSError."""
        connection = await self._connect()
        content = self._template % json.dumps(request_fields(request))
        answer = await connection.post(f"{self._head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)
        return answer

    async def send(self, request: PlannedRequest, started_at: float) -> RequestResult:
        """Send one request. `started_at`: the load's start on the event loop's clock."""
        clock = asyncio.get_running_loop().time
        sent_s = clock() - started_at
        status = error = None
        try:
            status, content = await self.post(request)
            outcome = RequestOutcome.SUCCEEDED if status == 200 else RequestOutcome.FAILED
            if status != 200:
                error = f"{status} {content[:200].decode(errors='replace')}"
        except OSError as failure:
            outcome, error = RequestOutcome.UNREACHED, f"{type(failure).__name__}: {failure}"
        return RequestResult(request.kind, request.due_s, sent_s, clock() - started_at, outcome, status, error)

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and loop.time() - connection.idle_since_s < KEEPALIVE_S:
                return connection
            connection.close()
        _, connection = await loop.create_connection(HttpConnection, self._host, self._port)
        return connection


async def closed_loop(client: PeerClient, kind: Kind, num_callers: int, duration_s: float) -> list[RequestResult]:
    """Keep one request of each caller in flight for `duration_s`, then wait for the last answers.

    A request is due when it is sent.
    """
    clock = asyncio.get_running_loop().time
    started_at = clock()
    seeds = itertools.count()
    results: list[RequestResult] = []

    async def call() -> None:
        while (now_s := clock() - started_at) < duration_s:
            seed = next(seeds)
            results.append(await client.send(PlannedRequest(now_s, kind, seed % 10, seed), started_at))

    async with asyncio.TaskGroup() as callers:
        for _ in range(num_callers):
            callers.create_task(call())
    return results


async def open_loop(client: PeerClient, requests: Iterable[PlannedRequest]) -> list[RequestResult]:
    """Send each request when it is due, whatever became of the others; wait for all answers."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with asyncio.TaskGroup() as senders:
        tasks = []
        for request in requests:
            await asyncio.sleep(started_at + request.due_s - loop.time())
            tasks.append(senders.create_task(client.send(request, started_at)))
    return [task.result() for task in tasks]


def request_fields(request: PlannedRequest) -> Body:
    """Return the body of a request; the model's defaults are left out."""
    kind = request.kind
    fields = {"prompt": str(request.label), "n": kind.num_samples, "seed": request.seed, "cache": False}
    return fields | ({} if kind.num_steps is None else {"num_steps": kind.num_steps})


def complete_answer(received: bytes) -> tuple[int, bytes] | None:
    """Return status and body of an HTTP/1.1 answer with a length or in chunks; None while it is incomplete."""
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    status, fields = int(head[9:12]), head.lower()
    _, separator, rest = fields.partition(b"\r\ncontent-length:")
    if separator:
        return (status, body) if len(body) >= int(rest.partition(b"\r\n")[0]) else None
    if b"\r\ntransfer-encoding: chunked" not in fields:
        raise ValueError(f"Unknown length of an answer: {head!r}. Allowed: Content-Length, or chunks.")
    # JSON has no line breaks of its own here: every other line is a chunk's size.
    return (status, b"".join(body.split(b"\r\n")[1::2])) if body.endswith(b"0\r\n\r\n") else None
