"""The HTTP application: its routes, its middleware, and services that live as long as it does."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from msf_scheduler.errors import SchedulerError
from msf_scheduler.tracing import Tracing, TracingUnavailable
from msf_server.api_keys import KeyRing
from msf_server.dependencies import open_services
from msf_server.drain import Drain
from msf_server.errors import respond, translate
from msf_server.middleware.auth import DOCS_ASSETS, LIMIT_HEADERS, ApiKeyAuth
from msf_server.middleware.body_limit import BodyLimit
from msf_server.middleware.caller_limits import CallerLimits
from msf_server.middleware.head import HeadAsGet
from msf_server.middleware.request_id import RequestId
from msf_server.oip import aliases, model_control, statistics
from msf_server.oip import routes as oip
from msf_server.oip.tensors import HEADER_LENGTH
from msf_server.openapi import DESCRIPTION, LICENSE, SERVERS, TAGS, complete
from msf_server.request_log import log_of
from msf_server.routes import files, health, images, jobs, models, pages, stats, usage
from msf_server.settings import ServerSettings


def create_app(settings: ServerSettings, tracing: Tracing | None = None) -> FastAPI:
    """Build the application; it connects to Redis once its lifespan starts, which sets `app.state.services`.

    `app.state.drain` shuts it down in good order.
    Raises ValueError if the file of API keys is invalid, TracingUnavailable if OpenTelemetry is not installed.
    """
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    tracing = tracing or (Tracing("msf-server", settings.otlp_endpoint) if settings.otlp_endpoint else None)

    drain = Drain()
    if settings.grpc_port:
        from msf_server.oip_grpc.server import serving_grpc

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, keys, tracing, drain) as services:
            app.state.services = services
            async with serving_grpc(app, settings) if settings.grpc_port else nullcontext():
                yield
        if tracing is not None:
            tracing.close()

    app = _App(
        title="msf-serve",
        description=DESCRIPTION,
        license_info=LICENSE,
        openapi_tags=TAGS,
        servers=SERVERS,
        version=version("msf-serve"),
        lifespan=lifespan,
        openapi_url=None,  # pages.py serves it: FastAPI would encode it again for each request
        docs_url=None,  # pages.py serves it, with a content security policy
        redoc_url=None,
        redirect_slashes=False,
    )
    app.requires_keys = keys is not None
    app.state.drain = drain
    for module in (images, files, jobs, models, usage, statistics, oip, model_control, aliases, health, stats, pages):
        app.router.routes.extend(module.router.routes)  # `include_router` would match and wrap every request twice
    app.mount("/page", pages.page_files)
    app.mount(DOCS_ASSETS, pages.docs_files)
    for kind in (HTTPException, RequestValidationError, SchedulerError):
        app.add_exception_handler(kind, _answer)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s)
    app.add_middleware(CallerLimits)
    app.add_middleware(ApiKeyAuth, keys=keys, operations_port=settings.metrics_port or None)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", HEADER_LENGTH, "X-Request-Id"),
            expose_headers=(HEADER_LENGTH, "Location", "Retry-After", "Server-Timing", "X-Request-Id", *LIMIT_HEADERS),
        )
    app.add_middleware(HeadAsGet)
    if tracing is not None:
        try:
            from msf_server.middleware.tracing import add_tracing
        except ModuleNotFoundError as error:
            raise TracingUnavailable(error.name) from error
        add_tracing(app, tracing)
    app.add_middleware(RequestId, drain=drain)  # added last, so outermost
    return app


def prepare(app: FastAPI) -> None:
    """Build the API's description, and exempt what lives as long as the process from garbage collection.

    Later, either would hold the event loop: a full collection of all that is imported takes 80 ms.
    """
    app.openapi()
    gc.collect()
    gc.freeze()


class _App(FastAPI):
    """FastAPI with our OpenAPI document, and without its own telemetry, which looks for its configuration each time."""

    requires_keys = False
    _openapi_json = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Starlette.__call__(self, scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            complete(super().openapi(), requires_keys=self.requires_keys)
        assert self.openapi_schema is not None
        return self.openapi_schema

    def openapi_json(self) -> bytes:
        """Return the document as it is served."""
        self._openapi_json = self._openapi_json or json.dumps(self.openapi(), separators=(",", ":")).encode()
        return self._openapi_json


async def _answer(request: Request, error: Exception) -> Response:
    answer = translate(error)
    log_of(request.scope).error_code = answer.code
    if answer.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer.headers = {"Allow": ", ".join(_methods_at(request))}
    return respond(answer, request.scope["path"])


def _methods_at(request: Request) -> list[str]:
    """Return the methods of every route at the path of `request`; the router itself names those of the first only."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in routes for method in route.methods} or {"GET"}  # those of static files
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
