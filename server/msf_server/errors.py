"""Errors as callers see them, and the one translation of exceptions into HTTP."""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import (
    DeadlineTooShort,
    IdempotencyConflict,
    LimitExceeded,
    MemoryFull,
    QueueFull,
    SchedulerError,
    ServerStopping,
)

logger = logging.getLogger(__name__)

MEMORY_RETRY_AFTER_S = 30.0  # results expire gradually, after some minutes
UNAVAILABLE_RETRY_AFTER_S = 5.0

# HTTP status and outcome in the metrics. 499 is unregistered, but known to proxies, and clients do not retry it.
ANSWERS: dict[str, tuple[int, str]] = {
    ErrorCode.INVALID_VALUE: (400, "invalid"),
    ErrorCode.MISSING_FIELD: (400, "invalid"),
    ErrorCode.UNKNOWN_FIELD: (400, "invalid"),
    ErrorCode.INVALID_JSON: (400, "invalid"),
    ErrorCode.UNKNOWN_CLASS: (400, "invalid"),
    ErrorCode.STRICT_UNAVAILABLE: (400, "invalid"),
    ErrorCode.WEBHOOKS_OFF: (400, "invalid"),
    ErrorCode.LOAD_FAILED: (400, "invalid"),
    ErrorCode.INVALID_API_KEY: (401, "invalid"),
    ErrorCode.MISSING_SCOPE: (403, "invalid"),
    ErrorCode.INVALID_SIGNATURE: (403, "invalid"),
    ErrorCode.URL_EXPIRED: (403, "invalid"),
    ErrorCode.NOT_FOUND: (404, "invalid"),
    ErrorCode.MODEL_NOT_FOUND: (404, "invalid"),
    ErrorCode.MODEL_NOT_LOADED: (404, "invalid"),
    ErrorCode.JOB_NOT_FOUND: (404, "invalid"),
    ErrorCode.METHOD_NOT_ALLOWED: (405, "invalid"),
    ErrorCode.BODY_TOO_SLOW: (408, "invalid"),
    ErrorCode.IDEMPOTENCY_CONFLICT: (409, "invalid"),
    ErrorCode.SUPERSEDED: (409, "invalid"),
    ErrorCode.BODY_TOO_LARGE: (413, "invalid"),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: (415, "invalid"),
    ErrorCode.HEADERS_TOO_LARGE: (431, "invalid"),
    ErrorCode.QUEUE_FULL: (429, "refused"),
    ErrorCode.STORAGE_FULL: (429, "refused"),
    ErrorCode.RATE_LIMIT_EXCEEDED: (429, "limited"),
    ErrorCode.QUOTA_EXCEEDED: (429, "limited"),
    ErrorCode.DRAINING: (503, "unavailable"),
    ErrorCode.NO_WORKER: (503, "unavailable"),
    ErrorCode.QUEUE_UNAVAILABLE: (503, "unavailable"),
    ErrorCode.TIMEOUT: (504, "timeout"),
    ErrorCode.INTERNAL_ERROR: (500, "error"),
    ErrorCode.RESULT_GONE: (500, "error"),
    ErrorCode.CANCELLED: (499, "cancelled"),
    ErrorCode.CLIENT_GONE: (499, "client_gone"),
    ErrorCode.DEADLINE: (504, "timeout"),
    ErrorCode.ENGINE_ERROR: (500, "failed"),
    ErrorCode.NON_FINITE: (500, "failed"),
    ErrorCode.POISONED: (500, "failed"),
    ErrorCode.FINGERPRINT_GONE: (500, "failed"),
}
_MAX_QUOTED = 80  # characters of a value in a message
_ENCODER = json.JSONEncoder(default=repr)
_TYPES = {429: "rate_limit_error", 499: "cancelled"}  # otherwise by class of status
_HEADERS = {  # x-should-retry keeps OpenAI's clients from retries that would fail again or queue the same work twice
    ErrorCode.INVALID_API_KEY: {"WWW-Authenticate": "Bearer"},
    ErrorCode.BODY_TOO_SLOW: {"Connection": "close"},
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: {"Accept-Encoding": "gzip, deflate"},
    ErrorCode.IDEMPOTENCY_CONFLICT: {"x-should-retry": "false"},
    ErrorCode.QUOTA_EXCEEDED: {"x-should-retry": "false"},
    ErrorCode.TIMEOUT: {"x-should-retry": "false"},
}


class ErrorDetail(BaseModel):
    """Every code, its cause and its remedy are in docs/errors.md."""

    message: str = Field(description="For people: says what is wrong and what is allowed.")
    type: str = Field(description="OpenAI's error type.")
    param: str | None = Field(description="The invalid field, if the error concerns one.")
    code: str = Field(description="For programs: stable across releases.")


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorDetail


_DESCRIPTIONS: dict[int | str, str] = {
    "default": "Every error has this shape.",
    400: "A field or the body is invalid; the message says what is allowed.",
    401: "The API key is missing or unknown.",
    403: "The API key lacks the required scope.",
    404: "No such model, version or job, or the job belongs to another key.",
    409: "The Idempotency-Key was used for another request.",
    413: "The body is too large.",
    415: "The body's content type, charset or content coding is not supported.",
    429: "The queue is full or a limit of the key is exhausted; `Retry-After` says when to try again.",
    499: "Another client cancelled the job.",
    500: "The job failed; `code` gives the reason.",
    503: "The server is draining, Redis is unreachable, or no worker serves the model.",
    504: "The job cannot end, or did not end, within its timeout_s.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description} for status, description in _DESCRIPTIONS.items()
}


class ApiError(HTTPException):
    """An error answer; an HTTPException, so that it passes through FastAPI's body parsing."""

    code: str = ErrorCode.INTERNAL_ERROR

    def __init__(
        self, message: str, *, code: str | None = None, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        self.code = code or self.code
        self.param = param
        status, self.outcome = ANSWERS.get(self.code, (500, "failed"))  # a worker may be newer than this server
        self.type = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        headers = dict(_HEADERS.get(self.code, {}))  # type: ignore[call-overload]
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            retry_after_s = UNAVAILABLE_RETRY_AFTER_S
        if retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        super().__init__(status, message, headers)


class InvalidRequest(ApiError):
    """The request is wrong; by default, one of its values."""

    code = ErrorCode.INVALID_VALUE


def quoted(value: object) -> str:
    """Return `value` as JSON in printable ASCII, truncated."""
    text = ""
    for chunk in _ENCODER.iterencode(value):  # stops early: a caller's value may be long, or nested deeply
        text += chunk
        if len(text) > _MAX_QUOTED:
            return f"{text[: _MAX_QUOTED - 3]}..."
    return text


def translate(error: Exception) -> ApiError:
    """Return the answer to `error`; an unexpected one reveals no internals."""
    match error:
        case ApiError():
            return error
        case ClientDisconnect():
            return ApiError("The caller closed the connection.", code=ErrorCode.CLIENT_GONE)
        case QueueFull():
            return ApiError(str(error), code=ErrorCode.QUEUE_FULL, retry_after_s=error.retry_after_s)
        case LimitExceeded():
            is_quota = error.name == "samples_per_day"
            code = ErrorCode.QUOTA_EXCEEDED if is_quota else ErrorCode.RATE_LIMIT_EXCEEDED
            return ApiError(f"Refused: {error}.", code=code, retry_after_s=error.retry_after_s)
        case MemoryFull():
            return ApiError(str(error), code=ErrorCode.STORAGE_FULL, retry_after_s=MEMORY_RETRY_AFTER_S)
        case DeadlineTooShort():
            return ApiError(f"Refused: {error}.", code=ErrorCode.TIMEOUT)
        case IdempotencyConflict():
            return ApiError(f"Refused: {error}.", code=ErrorCode.IDEMPOTENCY_CONFLICT, param="Idempotency-Key")
        case ServerStopping():
            return ApiError(str(error), code=ErrorCode.DRAINING)
        case SchedulerError():
            logger.warning("answered 503: %s", error)  # which may name hosts and files that are not for callers
            message = "The job store cannot be used now; the server's log has the cause. Try again."
            return ApiError(message, code=ErrorCode.QUEUE_UNAVAILABLE)
        case RequestValidationError():
            return _invalid_parameter(error)
        case HTTPException():
            return _routing_error(error)
        case _:
            return ApiError("Internal error; the server's log has the cause under this x-request-id.")


def respond(error: ApiError, path: str) -> Response:
    """Answer with OpenAI's error object, or under /v2 with the Open Inference Protocol's."""
    is_oip = f"{path}/".startswith("/v2/")
    body: dict[str, Any] = {"error": error.detail} if is_oip else error_response(error).model_dump()
    # In ASCII: a caller's text, quoted in a message, reaches terminals and logs.
    return Response(json.dumps(body), error.status_code, error.headers, "application/json")


def error_response(error: ApiError) -> ErrorResponse:
    """Return the body of an error answer."""
    detail = ErrorDetail(message=error.detail, type=error.type, param=error.param, code=error.code)
    return ErrorResponse(error=detail)


def _invalid_parameter(error: RequestValidationError) -> InvalidRequest:
    first = error.errors()[0]
    name = str(first["loc"][1])
    problem = f"{name} is missing." if first["type"] == "missing" else f"Invalid {name}: {quoted(first['input'])}."
    return InvalidRequest(f"{problem} Allowed: {first['msg']}.", param=name)


def _routing_error(error: HTTPException) -> ApiError:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return InvalidRequest("No resource at this path.", code=ErrorCode.NOT_FOUND)
    answer = InvalidRequest(f"{HTTPStatus(error.status_code).phrase}.")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        answer = InvalidRequest("Method not allowed at this path; see Allow.", code=ErrorCode.METHOD_NOT_ALLOWED)
    answer.status_code, answer.headers = error.status_code, error.headers
    return answer
