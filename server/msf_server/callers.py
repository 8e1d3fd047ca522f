"""The party behind a request, and which jobs it may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from fastapi import Request
from starlette.types import Scope as AsgiScope

from msf_scheduler.jobs import JobRecord
from msf_server.api_keys import ApiKey, Scope
from msf_server.request_log import log_of


@dataclass(frozen=True)
class Caller:
    """An API key, if the service asks for keys, and the tenant that the caller's jobs belong to."""

    key: ApiKey | None
    tenant: str

    def may_see(self, job: JobRecord) -> bool:
        """Return whether `job` is the caller's own; without keys, its unguessable id is permission enough."""
        return self.key is None or job.terms.tenant == self.tenant or Scope.ADMIN in self.key.scopes


def identify(request: Request) -> Caller:
    """Return the caller of `request`, whose tenant is its key's name.

    Where the service asks for no keys, the tenant is the digest of the key that the caller sends anyway (Redis must not
    hold secrets), or else its address.
    """
    key = log_of(request.scope).api_key
    if key is not None:
        return Caller(key, key.name)
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret:
        return Caller(None, f"key-{hashlib.sha256(secret.strip().encode()).hexdigest()[:16]}")
    return Caller(None, f"address-{network_of(request.scope)}")


def routing_key_of(request: Request) -> str:
    """Return what decides between the versions of an alias: equal keys get the same one."""
    return request.headers.get("idempotency-key") or log_of(request.scope).request_id


def network_of(scope: AsgiScope) -> str:
    """Return the address of a request's client as limits count it: of IPv6, the /64 that one subscriber has."""
    try:
        address = ip_address((scope.get("client") or ("",))[0])
    except ValueError:
        return "unknown"
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or ip_network((int(address), 64), strict=False))
