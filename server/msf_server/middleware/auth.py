"""Who calls: checked before anything of a request's body is read. Every path needs a key that is not listed here."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from msf_scheduler.jobs import JobRecord
from msf_server import api_keys as keys
from msf_server.api_keys import ApiKey, KeyRing
from msf_server.errors import ApiError, Forbidden, NotHere, Unauthenticated, respond
from msf_server.routes.pages import DOCS_ASSETS

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/metrics", "/v1/stats", "/v1/models", "/v2"})
_OPEN_BELOW = ("/page/", "/v1/files/", f"{DOCS_ASSETS}/", "/v1/models/", "/v2/health/")

# Not where the public calls, if operations have a port of their own; load and unload are for admins besides.
_OPERATIONS = frozenset({"/metrics", "/v1/stats"})
_OPERATORS = "/v2/repository/models/"

# What /docs says of it; the gate has decided before any route is looked up.
documented = Security(HTTPBearer(auto_error=False, description="An API key, where the operator asks for one."))


class Gate:
    """Answers 401 or 403, or puts the caller's key into `request.state.caller` (None: the path or service is open)."""

    def __init__(self, app: ASGIApp, keys: KeyRing | None, operations_port: int | None) -> None:
        self.app = app
        self.keys = keys
        self.operations_port = operations_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            caller = self._admit(scope)
        except ApiError as error:
            if isinstance(error, Unauthenticated | Forbidden):
                scope["app"].state.context.metrics.denied.labels(error.code).inc()
            await respond(error, scope["path"])(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> ApiKey | None:
        """Raises Unauthenticated, Forbidden, NotHere."""
        is_public = self.operations_port is not None and scope["server"][1] != self.operations_port
        if is_public and (scope["path"] in _OPERATIONS or scope["path"].startswith(_OPERATORS)):
            raise NotHere("There is nothing at this path.")
        if scope["path"].startswith(_OPERATORS) and "origin" in Headers(scope=scope):
            raise Forbidden("Web pages may not do this.")  # any page could, on a service without keys
        if self.keys is None or _is_open(scope["method"], scope["path"]):
            return None
        caller = _authenticate(Headers(scope=scope).get("authorization", ""), self.keys)
        if is_public:
            caller = caller.model_copy(update={"scopes": caller.scopes - {keys.Scope.ADMIN}})
        _authorize(caller, scope["method"], scope["path"])
        return caller


def _is_open(method: str, path: str) -> bool:
    """What a model is may be read by all, as may whether it is ready; how it is used may not."""
    describes_model = method == "GET" and path.startswith("/v2/models/") and not path.endswith("/stats")
    return path in _OPEN or path.startswith(_OPEN_BELOW) or describes_model


def _authenticate(authorization: str, ring: KeyRing) -> ApiKey:
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        raise Unauthenticated("There is no API key. Allowed: a header Authorization: Bearer KEY.")
    key = ring.find(given.strip())
    if key is None:
        raise Unauthenticated("The API key is not known here. Allowed: a key that the operator gave out.")
    return key


def _authorize(caller: ApiKey, method: str, path: str) -> None:
    if path.startswith(_OPERATORS):
        if keys.Scope.ADMIN in caller.scopes:
            return
        raise Forbidden(f"The API key {caller.name!r} has the scope {', '.join(caller.scopes)}. Allowed here: admin.")
    if path == "/v1/usage" or keys.Scope.GENERATE in caller.scopes:
        return
    if keys.Scope.ADMIN in caller.scopes and path == "/v2/repository/index":
        return
    if keys.Scope.ADMIN in caller.scopes and path.startswith("/v1/jobs/") and method != "POST":
        return
    has = ", ".join(sorted(caller.scopes)) or "admin, but on another port"
    raise Forbidden(f"The API key {caller.name!r} has the scope {has}. Allowed here: generate.")


def _caller(request: Request) -> ApiKey | None:
    caller: ApiKey | None = request.state.caller
    return caller


Caller = Annotated[ApiKey | None, Depends(_caller)]


def may_see(caller: ApiKey | None, job: JobRecord) -> bool:
    """Where there are no keys, whoever knows a job's unguessable id may."""
    return caller is None or job.terms.tenant == caller.name or keys.Scope.ADMIN in caller.scopes
