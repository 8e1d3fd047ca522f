"""Base of request bodies: strict JSON types, and error messages that say what is allowed."""

from __future__ import annotations

import difflib
import json
from typing import Any, Self

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest, quoted


async def read_json(request: Request) -> Any:
    """Return the body of a request: parsed, or its bytes if its content type is not JSON. Raises InvalidRequest."""
    body = await request.body()
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        raise InvalidRequest("The body is missing. Allowed: a JSON object.", code=ErrorCode.INVALID_JSON)
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        return body
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        reason = str(error).split(";")[0]  # Python appends advice on its configuration
    raise InvalidRequest(f"The body is not valid JSON: {reason}.", code=ErrorCode.INVALID_JSON)


class RequestBody(BaseModel):
    """Base of all request bodies: strict JSON types, and error messages that quote the field's description."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: object, parse: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return parse(value)
        except ValidationError as error:
            raise cls._explained(error) from error

    @classmethod
    def _explained(cls, error: ValidationError) -> InvalidRequest:
        problems = error.errors(include_url=False)
        path = problems[0]["loc"]
        if not path:
            hint = " sent as Content-Type: application/json" if isinstance(problems[0]["input"], bytes) else ""
            return InvalidRequest(
                f"The body is not a JSON object. Allowed: a JSON object{hint}.", code=ErrorCode.INVALID_JSON
            )
        sentences = (cls._sentence(str(p["loc"][0]), p["type"], p["input"]) for p in problems)
        code = {"missing": ErrorCode.MISSING_FIELD, "extra_forbidden": ErrorCode.UNKNOWN_FIELD}.get(problems[0]["type"])
        return InvalidRequest(" ".join(sentences), param=str(path[0]), code=code)

    @classmethod
    def _sentence(cls, field: str, problem: str, value: object) -> str:
        if problem == "extra_forbidden":
            close = difflib.get_close_matches(field[:80], cls.model_fields, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            return f"Unknown field {quoted(field)}. {hint}Allowed: {', '.join(cls.model_fields)}."
        allowed = cls.model_fields[field].description
        if problem == "missing":
            return f"{field} is missing. Allowed: {allowed}"
        return f"Invalid {field}: {quoted(value)}. Allowed: {allowed}"
