"""The HTTP application: which routes, which layers, and what lives as long as it does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from msf_scheduler.errors import SchedulerError
from msf_scheduler.tracing import Tracing
from msf_server.api_keys import KeyRing
from msf_server.dependencies import open_context
from msf_server.errors import respond, translate
from msf_server.middleware.auth import Gate
from msf_server.middleware.request_id import BodyLimit, Edge
from msf_server.oip import model_control as oip_repository
from msf_server.oip import routes as oip
from msf_server.oip import stats
from msf_server.oip.tensors import HEADER_LENGTH
from msf_server.routes import files, health, images, jobs, models, usage
from msf_server.routes import pages as web
from msf_server.settings import ServerSettings
from msf_server.webhook_delivery import Deliverer

DESCRIPTION = "Images by class from two-stage latent diffusion models, in the shapes of OpenAI's image API."


def create_app(settings: ServerSettings, tracing: Tracing | None = None) -> FastAPI:
    """Connects to nothing until its lifespan starts; `app.state.context` is a ServerContext from then on.

    Raises ValueError when the file of API keys cannot be used, TracingUnavailable without what tracing needs.
    """
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    tracing = tracing or (Tracing("msf-server", settings.otlp_endpoint) if settings.otlp_endpoint else None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings, keys, tracing) as context:
            app.state.context = context
            delivering = asyncio.create_task(Deliverer(context).run()) if settings.webhook_secret else None
            yield
            if delivering is not None:
                delivering.cancel()
                await asyncio.gather(delivering, return_exceptions=True)
        if tracing is not None:
            tracing.close()

    app = FastAPIOffline(  # FastAPI, with what /docs needs in place of a CDN
        title="msf-serve",
        description=DESCRIPTION,
        version=version("msf-serve"),
        lifespan=lifespan,
        docs_url=None,  # in web.py, with a policy
        redoc_url=None,
        static_url=web.DOCS_ASSETS,
    )
    for part in (images, files, jobs, models, usage, oip, oip_repository, health, stats, web):
        app.include_router(part.router)
    app.mount("/page", web.assets)
    for handled in (HTTPException, RequestValidationError, SchedulerError):
        app.add_exception_handler(handled, _answer)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, body_timeout_s=settings.body_timeout_s)
    app.add_middleware(Gate, keys=keys, operations_port=settings.operations_port)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "Idempotency-Key", HEADER_LENGTH, "X-Request-Id"),
            expose_headers=(HEADER_LENGTH, "Location", "Retry-After", "Server-Timing", "X-Request-Id"),
        )
    if tracing is not None:
        from msf_server.middleware.tracing import Traced

        app.add_middleware(Traced, tracing=tracing)
    app.add_middleware(Edge)  # added last, so outermost
    return app


async def _answer(request: Request, error: Exception) -> JSONResponse:
    return respond(translate(error), request.url.path)
