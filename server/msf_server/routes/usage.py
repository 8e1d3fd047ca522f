"""`GET /v1/usage`: use and limits of API keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from msf_server.api_keys import Scope
from msf_server.dependencies import CallerDep, KeyRingDep, MeterDep
from msf_server.errors import REFUSALS
from msf_server.middleware.auth import bearer_auth

router = APIRouter(
    tags=["usage"], dependencies=[bearer_auth], responses={status: REFUSALS[status] for status in ("default", 401, 429)}
)


class KeyUsage(BaseModel):
    """Limits of one API key, and its use since its first request."""

    name: str
    requests: int = Field(description="Requests within the limits.")
    refused: int = Field(description="Requests that exceeded a limit.")
    samples: int = Field(description="Images of accepted jobs.")
    sample_steps: int = Field(description="Denoising steps of those images: the work requested of the device.")
    requests_per_minute: int | None = Field(description="Limit; null: none.")
    samples_per_day: int | None = Field(description="Limit; null: none.")
    concurrent_sample_steps: int | None = Field(description="Limit of those queued or running; null: none.")


class UsageList(BaseModel):
    """Use of one key or, for administrators, of every key."""

    object: Literal["list"] = "list"
    data: list[KeyUsage]


@router.get("/v1/usage", operation_id="getUsage", summary="Use of your API key")
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
                concurrent_sample_steps=key.concurrent_sample_steps,
                **asdict(await meter.usage(key.name)),
            )
            for key in visible
        ]
    )
