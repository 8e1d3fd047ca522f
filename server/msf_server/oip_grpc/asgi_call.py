"""Calls of the HTTP application within its process: what gRPC and HTTP callers get is one implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Message

Header = tuple[bytes, bytes]


@dataclass
class Answer:
    """Answer of the application to one request."""

    status: int = 500
    headers: Headers = field(default_factory=lambda: Headers({}))
    body: bytes = b""


@dataclass(frozen=True)
class Peer:
    """Sender of a request, and the port that took it."""

    host: str
    port: int
    server_port: int


async def call_app(
    app: FastAPI,
    peer: Peer,
    method: str,
    path: str,
    headers: Sequence[Header],
    body: bytes = b"",
    extensions: Mapping[str, Any] | None = None,
) -> Answer:
    """Return the answer to a request. A cancellation reaches the application as the end of its connection."""
    answer, chunks = Answer(), bytearray()
    is_gone = asyncio.Event()
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if pending:
            return pending.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], Headers(raw=message["headers"])
        else:
            chunks.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"grpc"), (b"content-length", b"%d" % len(body)), *headers],
        "client": (peer.host, peer.port),
        "server": ("grpc", peer.server_port),
        "state": {},
        "extensions": extensions or {},
    }
    task = asyncio.create_task(app(scope, receive, send))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        is_gone.set()
        await asyncio.wait([task])  # it cancels its job
        raise
    answer.body = bytes(chunks)
    return answer
