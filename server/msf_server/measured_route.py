"""Route class that counts and times every request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute

from msf_scheduler.errors import ServerStopping
from msf_server.errors import translate
from msf_server.metrics import Metrics
from msf_server.request_log import log_of
from msf_server.schemas.body import read_json


class MeasuredRoute(APIRoute):
    """Observes each request of its routes once, including those whose body could not be parsed.

    The request's log holds its model, and the outcome of a stream that did not succeed. A stream ends with its last
    frame. An endpoint with a body is called with `body` and `request` alone: FastAPI describes them, but to provide
    them would take it longer than all else that a request needs.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler of the route."""
        handle = _handle_body(self.endpoint) if self.body_field else super().get_route_handler()

        async def measured(request: Request) -> Response:
            started_at = time.perf_counter()
            log = log_of(request.scope)
            metrics: Metrics = request.app.state.services.metrics

            def observe() -> None:
                metrics.observe_request(log, self.path_format, time.perf_counter() - started_at)

            try:
                response = await handle(request)
            except (Exception, asyncio.CancelledError) as error:
                log.outcome = translate(error if isinstance(error, Exception) else ServerStopping()).outcome
                observe()
                raise
            if isinstance(response, StreamingResponse):
                response.body_iterator = _then(response.body_iterator, observe)
            else:
                observe()
            return response

        return measured


def _handle_body(endpoint: Callable[..., Any]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    parse = get_type_hints(endpoint)["body"].model_validate

    async def handle(request: Request) -> Response:
        response: Response = await endpoint(parse(await read_json(request)), request)
        return response

    return handle


async def _then(frames: AsyncIterable[Any], finish: Callable[[], None]) -> AsyncIterator[Any]:
    try:
        async for frame in frames:
            yield frame
    finally:
        finish()
