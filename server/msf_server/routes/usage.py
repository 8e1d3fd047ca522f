"""`GET /v1/usage`: what a key has used of its limits."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from msf_server.api_keys import Scope
from msf_server.dependencies import Context
from msf_server.middleware.auth import Caller, documented
from msf_server.schemas import REFUSALS, KeyUsage, UsageList

router = APIRouter(tags=["usage"], dependencies=[documented], responses={"default": REFUSALS["default"]})


@router.get("/v1/usage", summary="What your API key has used")
async def usage(caller: Caller, context: Context) -> UsageList:
    """With the scope admin, of every key; empty where the service asks for no keys."""
    if caller is None or context.keys is None:
        return UsageList(data=[])
    visible = context.keys.keys() if Scope.ADMIN in caller.scopes else (caller,)
    return UsageList(
        data=[
            KeyUsage(
                name=key.name,
                requests_per_minute=key.requests_per_minute,
                samples_per_day=key.samples_per_day,
                **asdict(await context.meter.usage(key.name)),
            )
            for key in visible
        ]
    )
