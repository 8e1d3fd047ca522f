"""Path parameters of the Open Inference Protocol: a model's default version, or one of its versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request

from msf_scheduler.jobs import ModelInfo
from msf_server.callers import routing_key_of
from msf_server.dependencies import CatalogDep

ModelName = Annotated[str, Path(alias="model", description="Name of a model.")]


async def find_default(name: ModelName, catalog: CatalogDep, request: Request) -> ModelInfo:
    """Return the version that the model in the path stands for."""
    return await catalog.find(name, _routing_key(request))


async def find_version(name: ModelName, version: str, catalog: CatalogDep, request: Request) -> ModelInfo:
    """Return the version of the model in the path, which may be the tag of an alias."""
    return await catalog.find(f"{name}:{version}", _routing_key(request))


async def follow_operators(catalog: CatalogDep) -> None:
    """Know what was loaded and unloaded at any server; for all but the busiest routes."""
    await catalog.refresh()


def _routing_key(request: Request) -> str | None:
    """Return the key of an inference; a question about an alias is about its heaviest version."""
    return routing_key_of(request) if request.method == "POST" else None
