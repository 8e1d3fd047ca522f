"""Base of request bodies: strict JSON, and error messages that say what is allowed."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from email.message import Message
from typing import Annotated, Any, Self

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from starlette.datastructures import Headers

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import InvalidRequest, quoted

JSON = "application/json"
MAX_FIELDS = 64  # of an object: more than any request has, and few enough to explain each
MAX_MEDIA_TYPE = 256  # characters
_CHARSETS = ("utf-8", "utf8", "us-ascii")


async def read_json(request: Request) -> Any:
    """Return the parsed body of a request. Raises InvalidRequest."""
    check_media_type(request.headers, (JSON,))
    body = await request.body()
    if not body:
        raise InvalidRequest("The body is missing. Allowed: a JSON object.", code=ErrorCode.INVALID_JSON)
    return parse_json(body)


def check_media_type(headers: Headers, allowed: Sequence[str]) -> None:
    """Refuse a body that is not JSON in UTF-8 by its Content-Type. Raises InvalidRequest.

    A missing type counts as JSON, unless a web page sent it: across origins, it needs no preflight request.
    """
    field = headers.get("content-type", "")
    if field == JSON or not (field or "origin" in headers):
        return
    header = Message()
    header["content-type"] = field[:MAX_MEDIA_TYPE]
    media_type, charset = header.get_content_type(), header.get_content_charset("utf-8")
    is_json = media_type == JSON or (media_type.startswith("application/") and media_type.endswith("+json"))
    if not (is_json or media_type in allowed) or charset not in _CHARSETS:
        raise InvalidRequest(
            f"Unsupported Content-Type: {quoted(field)}. Allowed: {', '.join(allowed)}, with charset utf-8 if any.",
            param="Content-Type",
            code=ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        )


def parse_json(body: bytes) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark. Raises InvalidRequest."""
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        reason = str(error).split(";")[0]  # Python appends advice on its configuration
    raise InvalidRequest(f"The body is not valid JSON: {reason}.", code=ErrorCode.INVALID_JSON)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise ValueError(f"an object has {len(pairs)} fields, and at most {MAX_FIELDS} are allowed")
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {quoted(name)} occurs twice")
    return fields


def whole(value: object) -> object:
    """Take 1.0 for 1, as JSON does not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(whole)]


class RequestBody(BaseModel):
    """Base of all request bodies: strict JSON types, and error messages that quote the field's description.

    A field that is null is ignored, unless it is required.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: object, parse: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, dict):
            value = {name: each for name, each in value.items() if each is not None or cls._is_required(name)}
        try:
            return parse(value)
        except ValidationError as error:
            raise cls._explained(error) from error

    @classmethod
    def _is_required(cls, name: str) -> bool:
        return name in cls.model_fields and cls.model_fields[name].is_required()

    @classmethod
    def _explained(cls, error: ValidationError) -> InvalidRequest:
        problems = error.errors(include_url=False)
        path = problems[0]["loc"]
        if not path:
            return InvalidRequest("The body is not a JSON object.", code=ErrorCode.INVALID_JSON)
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
