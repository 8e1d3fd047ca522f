"""The gRPC server of one application, on a port of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from fastapi import FastAPI

from msf_server.middleware.http_protocol import HEAD_S
from msf_server.oip_grpc.call_limits import MAX_CALLS
from msf_server.oip_grpc.service import InferenceService
from msf_server.settings import ServerSettings

IDLE_S = 300.0  # after which a connection without calls is closed; clients connect again
LAST_ANSWERS_S = 1.0  # for answers to reach their callers before the connections end


@asynccontextmanager
async def serving_grpc(app: FastAPI, settings: ServerSettings) -> AsyncIterator[None]:
    """Serve gRPC at `settings.grpc_port`; at the end, answer what was accepted within the drain timeout."""
    service = InferenceService(app, settings.grpc_port, settings.body_timeout_s)
    server = grpc.aio.server(
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", 2 * settings.max_body_bytes),  # as JSON, a message grows
            ("grpc.server_handshake_timeout_ms", int(1000 * HEAD_S)),
            ("grpc.max_connection_idle_ms", int(1000 * IDLE_S)),
        ],
    )
    server.add_generic_rpc_handlers((service.handler(),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server.add_insecure_port(f"{host}:{settings.grpc_port}")
    await server.start()
    try:
        yield
    finally:
        await service.finish(settings.drain_timeout_s)
        await server.stop(LAST_ANSWERS_S)
