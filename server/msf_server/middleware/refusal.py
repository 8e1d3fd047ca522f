"""Answers of middleware to requests that reach no route, which would count them."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from msf_server.errors import respond, translate
from msf_server.metrics import Metrics
from msf_server.request_log import log_of


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `error`, and count it by its code."""
    answer = translate(error)
    log_of(scope).error_code = answer.code
    metrics: Metrics = scope["app"].state.services.metrics
    metrics.denied.labels(answer.code).inc()
    await respond(answer, scope["path"])(scope, receive, send)
