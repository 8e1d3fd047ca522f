"""Outermost ASGI layer: an id, security headers and an answer for every request, and a line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import cast

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.errors import ServerStopping
from msf_server.drain import Drain
from msf_server.errors import ApiError, InvalidRequest, quoted, respond, translate
from msf_server.middleware.http_protocol import MAX_HEAD_BYTES, MAX_HEADERS, head_too_large
from msf_server.request_log import RequestLog, start_log

logger = logging.getLogger(__name__)

LOGGED = ("/v1/", "/v2/models/", "/v2/repository/")  # excludes health checks and scrapes

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_HOST = re.compile(r"([\w.-]{0,255}|\[[\w.:%]{2,64}\])(:\d{0,5})?", re.ASCII)
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),  # pages set their own
    (b"cross-origin-resource-policy", b"same-origin"),
)


class RequestId:
    """Gives every answer an `x-request-id` (the caller's, if well-formed), and every exception an answer."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        proposed = Headers(scope=scope).get("x-request-id", "")
        log = start_log(scope, proposed if _REQUEST_ID.fullmatch(proposed) else f"req-{secrets.token_hex(8)}")
        task = cast("asyncio.Task[None]", asyncio.current_task())
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._drain.answered(task)
                headers = message["headers"]
                names = {name for name, _ in headers}
                headers += [header for header in _HEADERS if header[0] not in names]
                headers.append((b"x-request-id", log.request_id.encode()))
            await send(message)

        try:
            _check_head(scope)
            with self._drain.awaiting_answer(task):
                await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not self._drain.is_cut_short:
                raise
            task.uncancel()
            if not status:
                await respond(translate(ServerStopping()), scope["path"])(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # while its body was read
        except ApiError as error:
            log.error_code = error.code
            await respond(error, scope["path"])(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise
            logger.exception("%s %s failed, x-request-id %s", scope["method"], scope["path"], log.request_id)
            await respond(translate(error), scope["path"])(scope, receive, send_with_id)
        finally:
            if scope["path"].startswith(LOGGED):
                _write(log, scope, status, time.perf_counter() - log.started_at)


def _write(log: RequestLog, scope: Scope, status: int, duration_s: float) -> None:
    level = logging.DEBUG if scope["method"] == "GET" else logging.INFO  # clients poll jobs often
    if not logger.isEnabledFor(level):
        return
    fields = log.fields() | {"status": status, "duration_ms": round(1000 * duration_s, 1)}
    text = f"{scope['method']} {scope['path']} {status} in {fields['duration_ms']} ms: {log.text()}"
    logger.log(level, text, extra=fields)


def _check_head(scope: Scope) -> None:
    """Limit the head, of which the HTTP parser limits only what it buffers, and check the host, which URLs contain."""
    headers = scope["headers"]
    num_bytes = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in headers)
    if len(headers) > MAX_HEADERS or num_bytes > MAX_HEAD_BYTES:
        raise head_too_large()
    hosts = Headers(scope=scope).getlist("host")
    if not all(map(_HOST.fullmatch, hosts)) or (len(hosts) != 1 and (hosts or scope["http_version"] != "1.0")):
        raise InvalidRequest(
            f"Invalid Host: {quoted(', '.join(hosts))}. Allowed: one host name or address.", param="Host"
        )
