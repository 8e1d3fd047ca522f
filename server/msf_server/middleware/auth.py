"""API keys, checked before a request's body is read. Every path that is not listed here needs a key."""

from __future__ import annotations

from fastapi import Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_server import api_keys
from msf_server.api_keys import ApiKey, KeyRing
from msf_server.errors import ApiError, InvalidRequest, respond
from msf_server.request_log import log_of
from msf_server.signed_urls import FILES

DOCS_ASSETS = "/docs-assets"

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/metrics", "/v1/stats", "/v1/models", "/v2"})
_OPEN_BELOW = ("/page/", f"{FILES}/", f"{DOCS_ASSETS}/", "/v1/models/", "/v2/health/")

# With an operations port, these are absent from the public port; load and unload also need the scope admin.
_OPERATIONS = frozenset({"/metrics", "/v1/stats"})
_ADMINISTRATION = "/v2/repository/models/"

# Documentation only: the middleware decides before a route is looked up.
bearer_auth = Security(HTTPBearer(auto_error=False, description="An API key, if the operator requires one."))


class ApiKeyAuth:
    """Answers 401 or 403, or notes the caller's key in the request's log."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, operations_port: int | None) -> None:
        self.app = app
        self.keys = keys
        self.operations_port = operations_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            log_of(scope).api_key = self._admit(scope)
        except ApiError as error:
            if error.code in (ErrorCode.INVALID_API_KEY, ErrorCode.MISSING_SCOPE):
                scope["app"].state.services.metrics.denied.labels(error.code).inc()
            await respond(error, scope["path"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> ApiKey | None:
        """Return the caller's key, None for an open path or service. Raises InvalidRequest."""
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        is_public = self.operations_port is not None and scope["server"][1] != self.operations_port
        if is_public and (path in _OPERATIONS or path.startswith(_ADMINISTRATION)):
            raise InvalidRequest("No resource at this path.", code=ErrorCode.NOT_FOUND)
        if path.startswith(_ADMINISTRATION) and "origin" in headers:  # without keys, any web page could
            raise InvalidRequest(
                "Cross-origin requests to this endpoint are not allowed.", code=ErrorCode.MISSING_SCOPE
            )
        if self.keys is None or _is_open(method, path):
            return None
        key = _authenticate(headers.get("authorization", ""), self.keys)
        if is_public:
            key = key.model_copy(update={"scopes": key.scopes - {api_keys.Scope.ADMIN}})
        _authorize(key, method, path)
        return key


def _is_open(method: str, path: str) -> bool:
    """Return whether anybody may call: a model's description and readiness are public, its statistics are not."""
    describes_model = method == "GET" and path.startswith("/v2/models/") and not path.endswith("/stats")
    return path in _OPEN or path.startswith(_OPEN_BELOW) or describes_model


def _authenticate(authorization: str, keys: KeyRing) -> ApiKey:
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise InvalidRequest(
            "Missing API key. Allowed: a header Authorization: Bearer KEY.", code=ErrorCode.INVALID_API_KEY
        )
    key = keys.find(secret.strip())
    if key is None:
        raise InvalidRequest("Unknown API key. Allowed: a key issued by the operator.", code=ErrorCode.INVALID_API_KEY)
    return key


def _authorize(key: ApiKey, method: str, path: str) -> None:
    """Raise InvalidRequest if `key` lacks the scope that the path requires."""
    is_admin = api_keys.Scope.ADMIN in key.scopes
    if path.startswith(_ADMINISTRATION):
        required, is_allowed = api_keys.Scope.ADMIN, is_admin
    else:
        is_shared = path == "/v2/repository/index" or (path.startswith("/v1/jobs/") and method != "POST")
        required = api_keys.Scope.GENERATE
        is_allowed = path == "/v1/usage" or required in key.scopes or (is_admin and is_shared)
    if not is_allowed:
        scopes = ", ".join(sorted(key.scopes)) or "admin, on the operations port only"
        message = f"The API key {key.name!r} has the scope {scopes}. Allowed here: {required}."
        raise InvalidRequest(message, code=ErrorCode.MISSING_SCOPE)
