"""`GET /v1/usage`: use and limits of API keys."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from msf_server.api_keys import Scope
from msf_server.dependencies import CallerDep, KeyRingDep, MeterDep
from msf_server.middleware.auth import bearer_auth
from msf_server.schemas.errors import REFUSALS
from msf_server.schemas.usage import KeyUsage, UsageList

router = APIRouter(tags=["usage"], dependencies=[bearer_auth], responses={"default": REFUSALS["default"]})


@router.get("/v1/usage", summary="Use of your API key")
async def usage(caller: CallerDep, keys: KeyRingDep, meter: MeterDep) -> UsageList:
    """Report the caller's key, or every key to one with the scope admin; empty where the service uses no keys."""
    if caller.key is None or keys is None:
        return UsageList(data=[])
    visible = keys.keys() if Scope.ADMIN in caller.key.scopes else (caller.key,)
    return UsageList(
        data=[
            KeyUsage(
                name=key.name,
                requests_per_minute=key.requests_per_minute,
                samples_per_day=key.samples_per_day,
                **asdict(await meter.usage(key.name)),
            )
            for key in visible
        ]
    )
