"""Answer of `/v1/usage`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class KeyUsage(BaseModel):
    """Limits of one API key, and its use since its first request."""

    name: str
    requests: int = Field(description="Requests within the limits.")
    refused: int = Field(description="Requests that exceeded a limit.")
    samples: int = Field(description="Images of accepted jobs.")
    sample_steps: int = Field(description="Denoising steps of those images: the work requested of the device.")
    requests_per_minute: int | None = Field(description="Limit; null: none.")
    samples_per_day: int | None = Field(description="Limit; null: none.")


class UsageList(BaseModel):
    """Use of one key or, for administrators, of every key."""

    object: Literal["list"] = "list"
    data: list[KeyUsage]
