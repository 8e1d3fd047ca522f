"""Server spans of `/v1` requests, by OpenTelemetry's ASGI instrumentation."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

from msf_scheduler.tracing import Tracing

_UNTRACED = r"^[a-z]+://[^/]*/(?!v1/)"


def add_tracing(app: FastAPI, tracing: Tracing) -> None:
    """Open a span for each request below `/v1/`, continuing the caller's trace."""
    os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")  # the current names of attributes
    app.add_middleware(
        OpenTelemetryMiddleware,
        excluded_urls=_UNTRACED,
        default_span_details=_span_details,
        tracer_provider=tracing.provider,
        exclude_spans=["receive", "send"],
    )


def _span_details(scope: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Name a span by method and path; the query is left out, as signed URLs carry their signature there."""
    return f"{scope['method']} {scope['path']}", {"url.query": ""}
