"""The layer that opens a span for each request."""

from __future__ import annotations

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.tracing import Tracing

TRACED = "/v1/"


class Traced:
    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(TRACED):
            await self.app(scope, receive, send)
            return
        parent = self.tracing.extract(dict(Headers(scope=scope)))
        told = {"http.request.method": scope["method"], "url.path": scope["path"]}
        name = f"{scope['method']} {scope['path']}"
        with self.tracing.tracer.start_as_current_span(name, parent, SpanKind.SERVER, told) as span:

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self.app(scope, receive, send_noted)
            if job_id := scope.get("state", {}).get("job_id"):
                span.set_attribute("msf.job_id", job_id)
