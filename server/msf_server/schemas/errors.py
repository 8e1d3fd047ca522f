"""OpenAI's error object, and the error answers that the routes of `/v1` document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """Every code, its cause and its remedy are in docs/errors.md."""

    message: str = Field(description="For people: names the field, its value and what is allowed.")
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
    429: "The queue is full or a limit of the key is exhausted; `Retry-After` says when to try again.",
    499: "Another client cancelled the job.",
    500: "The job failed; `code` gives the reason.",
    503: "The server is draining, Redis is unreachable, or no worker serves the model.",
    504: "The job cannot end, or did not end, within its timeout_s.",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description} for status, description in _DESCRIPTIONS.items()
}
