"""Compressed request bodies, decoded within the limit for bodies."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from starlette.datastructures import Headers

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest, quoted

MAX_CODINGS = 4

_ALIASES = {"x-gzip": "gzip"}
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


def decode(body: bytes, headers: Headers, max_bytes: int) -> bytes:
    """Return a body without the codings that its `Content-Encoding` names. Raises InvalidRequest."""
    codings = _codings(headers)
    _check(codings)
    for coding in reversed(codings):  # they are listed in the order in which they were applied
        body = _decompressed(body, coding, max_bytes)
    return body


def _codings(headers: Headers) -> list[str]:
    fields = ",".join(headers.getlist("content-encoding"))
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
