"""API keys and their limits, checked before a body is read. Every path that is not listed here needs a key."""

from __future__ import annotations

import math

from fastapi import Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import SchedulerError
from msf_scheduler.rate_limits import RequestAllowance
from msf_server import api_keys
from msf_server.api_keys import ApiKey, KeyRing
from msf_server.callers import network_of
from msf_server.errors import ApiError, InvalidRequest
from msf_server.middleware.address_limit import AddressLimit
from msf_server.middleware.refusal import refuse
from msf_server.request_log import log_of
from msf_server.signed_urls import FILES

DOCS_ASSETS = "/docs-assets"

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/metrics", "/v1/stats", "/v1/models", "/v2"})
_OPEN_BELOW = ("/page/", f"{FILES}/", f"{DOCS_ASSETS}/", "/v1/models/", "/v2/health/")

# With an operations port, these are absent from the public port; administration also needs the scope admin.
_OPERATIONS = frozenset({"/metrics", "/v1/stats"})
_ADMINISTRATION = ("/v2/repository/models/", "/v2/repository/aliases/")

# Probes and scrapes come from few addresses and must be answered when callers exceed their limits.
_UNLIMITED = frozenset({"/metrics"})
_UNLIMITED_BELOW = ("/v2/health/",)
ANONYMOUS_PER_MINUTE = 600  # of one address
UNKNOWN_KEYS_PER_MINUTE = 60
LIMIT_HEADERS = tuple(f"x-ratelimit-{name}-requests" for name in ("limit", "remaining", "reset"))

# Documentation only: the middleware decides before a route is looked up.
bearer_auth = Security(HTTPBearer(auto_error=False, description="An API key, if the operator requires one."))


class ApiKeyAuth:
    """Answers 401, 403 or 429, or notes the caller's key in the request's log.

    Every request of a key counts towards its limit, whatever its answer. Where keys are required, requests without a
    known one are limited by address, so that neither open paths nor guessed keys are tried without end.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None, operations_port: int | None) -> None:
        self.app = app
        self.keys = keys
        self.operations_port = operations_port
        self._anonymous = AddressLimit("requests without an API key", ANONYMOUS_PER_MINUTE)
        self._unknown = AddressLimit("requests with an unknown API key", UNKNOWN_KEYS_PER_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = []

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and headers:
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        try:
            key = self._known_key(scope)
            await self._charge(key, scope, headers)
            self._admit(key, scope)
        except (ApiError, SchedulerError) as error:
            await refuse(error, scope, receive, send_with_limits)
            return
        log_of(scope).api_key = key
        await self.app(scope, receive, send_with_limits)

    def _known_key(self, scope: Scope) -> ApiKey | None:
        """Return the caller's key, without the scope admin if the port is public."""
        secret = _secret(scope)
        key = self.keys.find(secret) if self.keys is not None and secret else None
        if key is not None and self._is_public(scope):
            return key.model_copy(update={"scopes": key.scopes - {api_keys.Scope.ADMIN}})
        return key

    async def _charge(self, key: ApiKey | None, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        """Count a request, and add headers that tell what its key has left. Raises as `_admit`, and SchedulerError."""
        if self.keys is None or is_unlimited(scope["path"]):
            return
        if key is not None:
            allowance, refusal = await scope["app"].state.services.meter.charge_request(key.name, key.limits)
            if allowance is not None:
                headers += _limit_headers(allowance)
            if refusal is not None:
                raise refusal
        else:
            limit = self._unknown if _secret(scope) else self._anonymous
            limit.charge(network_of(scope))

    def _admit(self, key: ApiKey | None, scope: Scope) -> None:
        """Raise InvalidRequest unless `key`, or no key, may make the request."""
        method, path = scope["method"], scope["path"]
        if self._is_public(scope) and (path in _OPERATIONS or path.startswith(_ADMINISTRATION)):
            raise InvalidRequest("No resource at this path.", code=ErrorCode.NOT_FOUND)
        if path.startswith(_ADMINISTRATION) and "origin" in Headers(scope=scope):  # without keys, any web page could
            raise InvalidRequest(
                "Cross-origin requests to this endpoint are not allowed.", code=ErrorCode.MISSING_SCOPE
            )
        if self.keys is None or _is_open(method, path):
            return
        if key is None:
            problem = "Unknown API key. Allowed: a key issued by the operator."
            if not _secret(scope):
                problem = "Missing API key. Allowed: a header Authorization: Bearer KEY."
            raise InvalidRequest(problem, code=ErrorCode.INVALID_API_KEY)
        _authorize(key, method, path)

    def _is_public(self, scope: Scope) -> bool:
        return self.operations_port is not None and scope["server"][1] != self.operations_port


def _limit_headers(allowance: RequestAllowance) -> list[tuple[bytes, bytes]]:
    """Return the headers of OpenAI's API, which its clients and their proxies read."""
    values = (str(allowance.limit), str(allowance.remaining), f"{math.ceil(allowance.reset_s)}s")
    return [(name.encode(), value.encode()) for name, value in zip(LIMIT_HEADERS, values, strict=True)]


def is_unlimited(path: str) -> bool:
    """Return whether requests are answered whatever limits their caller has reached."""
    return path in _UNLIMITED or path.startswith(_UNLIMITED_BELOW)


def _is_open(method: str, path: str) -> bool:
    """Return whether anybody may call: a model's description and readiness are public, its statistics are not."""
    describes_model = method == "GET" and path.startswith("/v2/models/") and not path.endswith("/stats")
    return path in _OPEN or path.startswith(_OPEN_BELOW) or describes_model


def _secret(scope: Scope) -> str:
    """Return the key that the caller sent, empty if there is none."""
    scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


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
