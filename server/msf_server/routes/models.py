"""`GET /v1/models`: OpenAI's list, with the limits and defaults of requests to each model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from msf_scheduler.jobs import ModelInfo
from msf_server.catalog import Catalog
from msf_server.dependencies import CatalogDep, SettingsDep
from msf_server.schemas.errors import ErrorResponse
from msf_server.schemas.models import ModelList, ModelObject
from msf_server.settings import ServerSettings

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", responses={503: {"model": ErrorResponse}})
async def list_models(catalog: CatalogDep, settings: SettingsDep) -> ModelList:
    """Every version that a worker has registered, including those that no worker serves now."""
    return ModelList(data=[_model_object(model, catalog, settings) for model in await catalog.models()])


@router.get(
    "/v1/models/{model}",
    summary="Get a model",
    responses={status: {"model": ErrorResponse} for status in ("default", 404, 503)},
)
async def get_model(
    model: Annotated[str, Path(description='"name" or "name:version".')], catalog: CatalogDep, settings: SettingsDep
) -> ModelObject:
    """Look a model up by "name" (its newest served version) or "name:version"."""
    return _model_object(await catalog.find(model), catalog, settings)


def _model_object(model: ModelInfo, catalog: Catalog, settings: ServerSettings) -> ModelObject:
    return ModelObject(
        id=f"{model.name}:{model.version}",
        served=catalog.is_served(model),
        max_n=settings.max_images_per_request,
        **model.model_dump(),
    )
