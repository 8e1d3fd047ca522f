"""ASGI layer that bounds what one caller, and all callers together, hold of this process at a time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_server.callers import network_of
from msf_server.errors import ApiError
from msf_server.middleware.auth import is_unlimited
from msf_server.middleware.http_protocol import ANSWER_S, abort_connection
from msf_server.middleware.refusal import refuse
from msf_server.request_log import log_of

MAX_REQUESTS_OF_CALLER = 2048  # open at once
MAX_STREAMS = 1024  # of events, as each asks Redis for news every second
MAX_STREAMS_OF_CALLER = 256
MAX_STREAMS_OF_JOB = 32
MAX_UNREAD_BYTES = 256 * 2**20  # of answers that callers have not taken from this process
MAX_UNREAD_BYTES_OF_CALLER = 64 * 2**20
STALLED_S = 2.0  # without progress: an answer may be dropped for the limit of its caller
PIECE_BYTES = 128 * 1024  # of a larger answer, given to the connection at a time
RETRY_AFTER_S = 1.0

_STATE = "caller_limits"


@dataclass(eq=False)
class _Answer:
    caller: str
    scope: Scope
    num_bytes: int  # that the connection has not taken
    progressed_at: float = field(default_factory=time.monotonic)


class CallerLimits:
    """Refuses with 429 what exceeds a limit, and ends connections whose answers are not read.

    A caller is an API key, or else an address. A large answer is given to its connection in pieces, so that what the
    caller does not read stays countable; what counts is freed when the connection ends.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._requests: Counter[str] = Counter()  # open, by caller
        self._streams: Counter[str] = Counter()  # open, by "all", caller and job
        self._answers: dict[_Answer, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_unlimited(scope["path"]):
            await self.app(scope, receive, send)
            return
        caller = _caller_of(scope)
        try:
            _check("open requests", self._requests[caller], MAX_REQUESTS_OF_CALLER)
            _check(
                "bytes of answers that this caller has not read", self._unread(caller), MAX_UNREAD_BYTES_OF_CALLER // 2
            )
        except ApiError as error:
            await refuse(error, scope, receive, send)
            return
        streams: list[str] = []
        scope["state"][_STATE] = (self, caller, streams)

        async def send_in_pieces(message: Message) -> None:
            if len(message.get("body", b"")) > PIECE_BYTES:
                await self._send(_Answer(caller, scope, len(message["body"])), message, send)
            else:
                await send(message)

        self._requests[caller] += 1
        try:
            await self.app(scope, receive, send_in_pieces)
        finally:
            _subtract(self._requests, [caller])
            _subtract(self._streams, streams)

    def open_stream(self, caller: str, job_id: str | None, streams: list[str]) -> None:
        """Count a stream of events in `streams` until its request ends. Raises ApiError."""
        limits = {"all": MAX_STREAMS, caller: MAX_STREAMS_OF_CALLER}
        if job_id is not None:
            limits[f"job {job_id}"] = MAX_STREAMS_OF_JOB
        for name, limit in limits.items():
            _check("open streams of events", self._streams[name], limit)
        self._streams.update(limits.keys())
        streams += limits

    async def _send(self, answer: _Answer, message: Message, send: Send) -> None:
        body, more_body = message["body"], message.get("more_body", False)
        self._hold(answer)
        try:
            async with asyncio.timeout(ANSWER_S):
                for start in range(0, len(body), PIECE_BYTES):
                    is_last = start + PIECE_BYTES >= len(body)
                    piece = body[start : start + PIECE_BYTES]
                    await send({"type": message["type"], "body": piece, "more_body": more_body or not is_last})
                    answer.num_bytes -= len(piece)
                    answer.progressed_at = time.monotonic()
        except TimeoutError:
            abort_connection(answer.scope)
        finally:
            self._answers.pop(answer, None)

    def _hold(self, new: _Answer) -> None:
        """Count an answer; while that exceeds a limit, end the connection that has read nothing for longest."""
        others = sorted(self._answers, key=lambda answer: answer.progressed_at)
        self._answers[new] = None
        stalled_before = time.monotonic() - STALLED_S
        for answer in others:
            is_too_much = self._unread() > MAX_UNREAD_BYTES or (
                answer.caller == new.caller
                and answer.progressed_at < stalled_before
                and self._unread(new.caller) > MAX_UNREAD_BYTES_OF_CALLER
            )
            if is_too_much:
                abort_connection(answer.scope)
                del self._answers[answer]

    def _unread(self, caller: str | None = None) -> int:
        return sum(answer.num_bytes for answer in self._answers if caller in (None, answer.caller))


def open_stream(scope: Scope, job_id: str | None = None) -> None:
    """Count a stream of events, of one job if its id is known, until its request ends. Raises ApiError."""
    limits, caller, streams = scope["state"][_STATE]
    limits.open_stream(caller, job_id, streams)


def _caller_of(scope: Scope) -> str:
    key = log_of(scope).api_key
    return f"key {key.name}" if key is not None else f"address {network_of(scope)}"


def _check(subject: str, count: int, limit: int) -> None:
    if count >= limit:
        raise ApiError(
            f"Too many {subject}: {count}. Allowed: {limit} at once.",
            code=ErrorCode.RATE_LIMIT_EXCEEDED,
            retry_after_s=RETRY_AFTER_S,
        )


def _subtract(counts: Counter[str], names: list[str]) -> None:
    for name in names:
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
