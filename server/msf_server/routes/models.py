"""`GET /v1/models`: OpenAI's list, with the limits and defaults of requests to each model."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from msf_scheduler.jobs import ModelInfo
from msf_server.catalog import Catalog
from msf_server.dependencies import CatalogDep, SettingsDep
from msf_server.errors import ErrorResponse
from msf_server.orders import num_steps_by_quality
from msf_server.schemas.images import Quality
from msf_server.settings import ServerSettings

router = APIRouter(tags=["models"])


class ModelObject(BaseModel):
    """OpenAI's model object, with the limits and defaults of requests to it."""

    id: str = Field(description='"name:version", as a request\'s `model` takes it.')
    object: Literal["model"] = "model"
    created: int = Field(description="Time of first registration, in Unix seconds.")
    owned_by: str = "msf-serve"
    name: str = Field(description="Name without version.")
    version: str = Field(description="A whole number; without an alias, the highest that is served is the default.")
    served: bool = Field(description="Whether a worker serves it now; otherwise requests to it get 503.")
    reason: str = Field(description="Why it is not served, if a worker says so; else empty.")
    description: str = Field(description="What it generates.")
    labels: tuple[str, ...] = Field(description="Class names; the id of a class is its position, from 0.")
    image_size: int = Field(description="Pixels along one side.")
    image_channels: int = Field(description="1: grey, 3: colour, 4: colour with transparency.")
    default_num_steps: int = Field(description="Total of all stages.")
    min_num_steps: int = Field(description="Smallest value that a request may set: the number of denoising stages.")
    max_num_steps: int = Field(description="Largest value that a request may set.")
    num_steps_by_quality: dict[Quality, int] = Field(description="Number of steps that each `quality` stands for.")
    default_guidance_scale: float = Field(description="1 means no guidance.")
    max_guidance_scale: float = Field(description="Largest value that a request may set.")
    takes_negative: bool = Field(description="Whether a request may set negative_prompt.")
    teacher: str | None = Field(
        description="Version that this one was distilled from. Where it is served, it answers requests to the name "
        "alone that exceed these limits, set negative_prompt, or ask for a quality above the default."
    )
    max_n: int = Field(description="Most images of one request.")
    fingerprint: str = Field(description="Of the worker that registered last; image bytes depend on it.")
    strict_cost: float | None = Field(
        description="Worst slowdown of a strict step batch, as a fraction; null: strict jobs are not available."
    )


class RefusedVersion(BaseModel):
    """A version in a worker's model repository that no worker can serve."""

    id: str = Field(description='"name:version".')
    reason: str = Field(description="What is wrong with it.")


class ModelList(BaseModel):
    """Every registered model version, the aliases, and the versions that cannot be served."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
    aliases: dict[str, dict[str, float]] = Field(
        description="Weight of each version by alias; a request's `model` takes an alias, too."
    )
    refused: list[RefusedVersion] = Field(description="Damaged and foreign folders of the workers' model repositories.")


@router.get(
    "/v1/models",
    operation_id="listModels",
    summary="List the models",
    responses={status: {"model": ErrorResponse} for status in ("default", 429, 503)},
)
async def list_models(catalog: CatalogDep, settings: SettingsDep) -> ModelList:
    """Every version that a worker has registered, including those that no worker serves now."""
    await catalog.refresh()
    return ModelList(
        data=[_model_object(model, catalog, settings) for model in await catalog.models()],
        aliases={alias: dict(weights) for alias, weights in catalog.aliases().items()},
        refused=[
            RefusedVersion(id=":".join(filter(None, (report.name, report.version))), reason=report.reason)
            for report in catalog.refused()
        ],
    )


@router.get(
    "/v1/models/{model}",
    operation_id="getModel",
    summary="Get a model",
    responses={status: {"model": ErrorResponse} for status in ("default", 404, 429, 503)},
)
async def get_model(
    model: Annotated[str, Path(description='"name", "name:version" or an alias.')],
    catalog: CatalogDep,
    settings: SettingsDep,
) -> ModelObject:
    """Look a model up by "name" (its newest served version), "name:version" or an alias (its heaviest version)."""
    await catalog.refresh()
    return _model_object(await catalog.find(model), catalog, settings)


def _model_object(model: ModelInfo, catalog: Catalog, settings: ServerSettings) -> ModelObject:
    return ModelObject(
        id=f"{model.name}:{model.version}",
        served=catalog.is_served(model),
        reason=catalog.problem(model),
        max_n=settings.max_images_per_request,
        num_steps_by_quality=num_steps_by_quality(model),
        **model.model_dump(),
    )
