"""ASGI layer that decodes compressed request bodies, within the limit for bodies."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest, quoted

MAX_CODINGS = 4

_ALIASES = {"x-gzip": "gzip"}
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class ContentCoding:
    """Hands a body that names its codings in `Content-Encoding` on as if it had arrived without."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        codings = _codings(scope) if scope["type"] == "http" else []
        if not codings:
            await self.app(scope, receive, send)
            return
        is_received = False

        async def receive_decoded() -> Message:
            nonlocal is_received
            if is_received:
                return await receive()
            _check(codings)
            body, message = b"", await receive()
            while message["type"] == "http.request":
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    is_received = True
                    return {"type": "http.request", "body": self._decoded(body, codings)}
                message = await receive()
            return message

        await self.app(scope, receive_decoded, send)

    def _decoded(self, body: bytes, codings: Sequence[str]) -> bytes:
        for coding in reversed(codings):  # they are listed in the order in which they were applied
            body = _decompressed(body, coding, self.max_body_bytes)
        return body


def _codings(scope: Scope) -> list[str]:
    fields = ",".join(Headers(scope=scope).getlist("content-encoding"))
    names = [name.strip().lower() for name in fields.split(",")]
    return [_ALIASES.get(name, name) for name in names if name not in ("", "identity")]


def _check(codings: Sequence[str]) -> None:
    unknown = next((coding for coding in codings if coding not in _WINDOW_BITS), None)
    if unknown or len(codings) > MAX_CODINGS:
        raise InvalidRequest(
            f"Unsupported Content-Encoding: {quoted(unknown or ', '.join(codings))}. "
            f"Allowed: {', '.join(_WINDOW_BITS)}, identity; at most {MAX_CODINGS} of them.",
            param="Content-Encoding",
            code=ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        )


def _decompressed(data: bytes, coding: str, max_bytes: int) -> bytes:
    decompressor = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        decoded = decompressor.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _invalid(coding, str(error)) from error
    if len(decoded) > max_bytes:
        raise InvalidRequest(
            f"The body is too large after decompression. Allowed: {max_bytes} bytes.", code=ErrorCode.BODY_TOO_LARGE
        )
    if not decompressor.eof:
        raise _invalid(coding, "its end is missing")
    if decompressor.unused_data:
        raise _invalid(coding, f"{len(decompressor.unused_data)} bytes follow its end")
    return decoded


def _invalid(coding: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not valid {coding}: {reason}.", param="Content-Encoding")
