"""Answers of `/v1/models`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class ModelObject(BaseModel):
    """OpenAI's model object, with the limits and defaults of requests to it."""

    id: str = Field(description='"name:version", as a request\'s `model` takes it.')
    object: Literal["model"] = "model"
    created: int = Field(description="Time of first registration, in Unix seconds.")
    owned_by: str = "msf-serve"
    name: str = Field(description="Name without version.")
    version: str = Field(description="A whole number; the highest that is served is the default.")
    served: bool = Field(description="Whether a worker serves it now; otherwise requests to it get 503.")
    description: str = Field(description="What it generates.")
    labels: tuple[str, ...] = Field(description="Class names; the id of a class is its position, from 0.")
    image_size: int = Field(description="Pixels along one side.")
    image_channels: int = Field(description="1: grey, 3: colour, 4: colour with transparency.")
    default_num_steps: int = Field(description="Total of both stages.")
    max_num_steps: int = Field(description="Largest value that a request may set.")
    default_guidance_scale: float = Field(description="1 means no guidance.")
    max_guidance_scale: float = Field(description="Largest value that a request may set.")
    max_n: int = Field(description="Most images of one request.")
    fingerprint: str = Field(description="Of the worker that registered last; image bytes depend on it.")
    strict_cost: float | None = Field(
        description="Worst slowdown of a strict step batch, as a fraction; null: strict jobs are not available."
    )


class ModelList(BaseModel):
    """Every registered model version."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
