"""Server spans of `/v1` requests, by OpenTelemetry's ASGI instrumentation."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.trace import Span, format_trace_id, get_current_span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.tracing import Tracing
from msf_server.request_log import log_of

_UNTRACED = r"^[a-z]+://[^/]*/(?!v1/)"


def add_tracing(app: FastAPI, tracing: Tracing) -> None:
    """Open a span for each request below `/v1/`, continuing the caller's trace."""
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the current names of attributes
    app.add_middleware(_RouteInSpan)
    app.add_middleware(
        OpenTelemetryMiddleware,
        excluded_urls=_UNTRACED,
        default_span_details=_span_details,
        server_request_hook=_note_trace_id,
        tracer_provider=tracing.provider,
        exclude_spans=["receive", "send"],
    )


class _RouteInSpan:
    """Names a span by its route, since a path may contain an id, when the answer begins: at its end, the span ends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_route(message: Message) -> None:
            path_format = getattr(scope.get("route"), "path_format", None)
            if message["type"] == "http.response.start" and path_format is not None:
                span = get_current_span()
                span.update_name(f"{scope['method']} {path_format}")
                span.set_attribute("http.route", path_format)
            await send(message)

        await self.app(scope, receive, send_with_route)


def _note_trace_id(span: Span, scope: dict[str, Any]) -> None:
    """Have the log and the exemplars of metrics lead to the trace, if it is sampled."""
    context = span.get_span_context()
    if context.trace_flags.sampled:
        log_of(scope).trace_id = format_trace_id(context.trace_id)


def _span_details(scope: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Name a span by its method; the query is left out, as signed URLs carry their signature there."""
    return str(scope["method"]), {"url.query": ""}
