"""Errors as callers see them, and the one translation of exceptions into HTTP."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
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
)
from msf_scheduler.jobs import JobError
from msf_server.schemas.errors import ErrorDetail, ErrorResponse

MEMORY_RETRY_AFTER_S = 30  # results expire gradually, after some minutes


class ApiError(HTTPException):
    """Base of all error answers; an HTTPException, so that it passes through FastAPI's body parsing."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    type: str = "server_error"
    code: str = ErrorCode.INTERNAL_ERROR  # stable, for programs
    outcome: str = "error"  # the metrics' label

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(self.status, message, headers)
        self.param = param
        self.code = code or self.code


class InvalidRequest(ApiError):
    status = HTTPStatus.BAD_REQUEST
    type = "invalid_request_error"
    code = ErrorCode.INVALID_VALUE
    outcome = "invalid"


class Unauthenticated(InvalidRequest):
    status = HTTPStatus.UNAUTHORIZED
    code = ErrorCode.INVALID_API_KEY

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(InvalidRequest):
    status = HTTPStatus.FORBIDDEN
    code = ErrorCode.MISSING_SCOPE


class NotFound(InvalidRequest):
    status = HTTPStatus.NOT_FOUND
    code = ErrorCode.NOT_FOUND


class ModelNotFound(InvalidRequest):
    status = HTTPStatus.NOT_FOUND
    code = ErrorCode.MODEL_NOT_FOUND


class JobNotFound(InvalidRequest):
    status = HTTPStatus.NOT_FOUND
    code = ErrorCode.JOB_NOT_FOUND


class Conflict(ApiError):
    """The idempotency key was used for another request; repeating this one is useless."""

    status = HTTPStatus.CONFLICT
    type = "invalid_request_error"
    code = ErrorCode.IDEMPOTENCY_CONFLICT
    outcome = "invalid"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="Idempotency-Key", headers={"x-should-retry": "false"})


class Superseded(InvalidRequest):
    """A concurrent load or unload superseded this one."""

    status = HTTPStatus.CONFLICT
    code = ErrorCode.SUPERSEDED


class BodyTooLarge(InvalidRequest):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    code = ErrorCode.BODY_TOO_LARGE


class HeadersTooLarge(InvalidRequest):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    code = ErrorCode.HEADERS_TOO_LARGE


class BodyTooSlow(InvalidRequest):
    status = HTTPStatus.REQUEST_TIMEOUT
    code = ErrorCode.BODY_TOO_SLOW

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Connection": "close"})


class Refused(ApiError):
    """The queue or Redis is full: nothing was admitted."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    type = "rate_limit_error"
    code = ErrorCode.QUEUE_FULL
    outcome = "refused"


class OverLimit(Refused):
    """A limit of the caller's API key is exhausted: nothing was admitted."""

    outcome = "limited"


class Unavailable(ApiError):
    """The service cannot work now: Redis is unreachable, no worker is there, or the server is draining."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    outcome = "unavailable"

    def __init__(self, message: str, *, code: str, retry_after_s: int = 5) -> None:
        super().__init__(message, code=code, headers={"Retry-After": str(retry_after_s)})


class TimedOut(ApiError):
    """The job did not end in time and was cancelled; a retry would queue the same work once more."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    code = ErrorCode.TIMEOUT
    outcome = "timeout"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-should-retry": "false"})


class JobFailed(ApiError):
    outcome = "failed"

    def __init__(self, job_id: str, error: JobError) -> None:
        super().__init__(f"Job {job_id} failed: {error.message}", code=error.code)


class Cancelled(ApiError):
    """Another client cancelled the job. Status 499 is unregistered, but known to proxies and never retried."""

    type = "cancelled"
    code = ErrorCode.CANCELLED
    outcome = "cancelled"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.status_code = 499


class ClientGone(Cancelled):
    """The caller disconnected; the answer is only logged and counted."""

    code = ErrorCode.CLIENT_GONE
    outcome = "client_gone"


def quoted(value: object) -> str:
    """Return `value` as JSON in printable ASCII, truncated to 80 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 80 else f"{text[:77]}..."


def translate(error: Exception) -> ApiError:
    """Return the answer to `error`; an unexpected one reveals no internals."""
    match error:
        case ApiError():
            return error
        case ClientDisconnect():
            return ClientGone("The caller closed the connection.")
        case QueueFull():
            return Refused(str(error), headers={"Retry-After": str(max(1, math.ceil(error.retry_after_s)))})
        case LimitExceeded():
            return _over_limit(error)
        case MemoryFull():
            return Refused(str(error), code=ErrorCode.STORAGE_FULL, headers={"Retry-After": str(MEMORY_RETRY_AFTER_S)})
        case DeadlineTooShort():
            return TimedOut(f"Refused: {error}.")
        case IdempotencyConflict():
            return Conflict(f"Refused: {error}.")
        case SchedulerError():
            return Unavailable(str(error), code=ErrorCode.QUEUE_UNAVAILABLE)
        case RequestValidationError():
            return _unreadable_body(error)
        case HTTPException():
            return _routing_error(error)
        case _:
            return ApiError("Internal error; the server's log has the cause under this x-request-id.")


def respond(error: ApiError, path: str) -> JSONResponse:
    """Answer with OpenAI's error object, or under /v2 with the Open Inference Protocol's."""
    is_oip = f"{path}/".startswith("/v2/")
    body: dict[str, Any] = {"error": error.detail} if is_oip else error_response(error).model_dump()
    return JSONResponse(body, error.status_code, headers=error.headers)


def error_response(error: ApiError) -> ErrorResponse:
    detail = ErrorDetail(message=error.detail, type=error.type, param=error.param, code=error.code)
    return ErrorResponse(error=detail)


def _over_limit(error: LimitExceeded) -> OverLimit:
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if error.name == "samples_per_day":
        headers["x-should-retry"] = "false"  # clients would retry every few seconds, for hours
        return OverLimit(f"Refused: {error}.", code=ErrorCode.QUOTA_EXCEEDED, headers=headers)
    return OverLimit(f"Refused: {error}.", code=ErrorCode.RATE_LIMIT_EXCEEDED, headers=headers)


def _unreadable_body(error: RequestValidationError) -> InvalidRequest:
    first = error.errors()[0]
    place, *names = first["loc"]
    if place != "body":
        name = str(names[0])
        problem = f"{name} is missing." if first["type"] == "missing" else f"Invalid {name}: {quoted(first['input'])}."
        return InvalidRequest(f"{problem} Allowed: {first['msg']}.", param=name)
    if first["type"] == "json_invalid":
        reason = f"{first['ctx']['error']} at character {first['loc'][-1]}"
        return InvalidRequest(f"The body is not valid JSON: {reason}.", code=ErrorCode.INVALID_JSON)
    return InvalidRequest("The body is missing. Allowed: a JSON object.", code=ErrorCode.INVALID_JSON)


def _routing_error(error: HTTPException) -> ApiError:
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI could not parse the body and hides the reason
        reason = str(error.__cause__ or error.detail).split(";")[0]  # Python appends advice on its configuration
        return InvalidRequest(f"The body is not valid JSON: {reason}.", code=ErrorCode.INVALID_JSON)
    phrase = HTTPStatus(error.status_code).phrase
    message, code = {
        404: ("No resource at this path.", ErrorCode.NOT_FOUND),
        405: ("Method not allowed at this path; see Allow.", ErrorCode.METHOD_NOT_ALLOWED),
    }.get(error.status_code, (f"{phrase}.", ErrorCode.INVALID_VALUE))
    translated = InvalidRequest(
        message,
        code=code,
        headers=dict(error.headers) if error.headers else None,
    )
    translated.status_code = error.status_code
    return translated
