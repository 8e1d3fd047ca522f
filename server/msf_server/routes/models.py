"""`GET /v1/models`: OpenAI's list, with what a request to each model may ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from msf_scheduler.jobs import ModelInfo
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import ErrorResponse
from msf_server.schemas import ModelList, ModelObject

router = APIRouter(tags=["models"])


@router.get("/v1/models", summary="List the models", responses={503: {"model": ErrorResponse}})
async def list_models(context: Context) -> ModelList:
    """Every version that a worker has registered, also while its workers are away."""
    return ModelList(data=[_model_object(model, context) for model in await context.catalog.models()])


@router.get(
    "/v1/models/{model}",
    summary="One model",
    responses={status: {"model": ErrorResponse} for status in ("default", 404, 503)},
)
async def get_model(
    model: Annotated[str, Path(description='"name" or "name:version".')], context: Context
) -> ModelObject:
    """By "name" (its newest served version) or "name:version"."""
    return _model_object(await context.catalog.find(model), context)


def _model_object(model: ModelInfo, context: ServerContext) -> ModelObject:
    return ModelObject(
        id=f"{model.name}:{model.version}",
        served=context.catalog.is_served(model),
        max_n=context.settings.max_images_per_request,
        **model.model_dump(),
    )
