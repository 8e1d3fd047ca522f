"""Path parameters of the Open Inference Protocol: a model's newest version, or one of its versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from msf_scheduler.jobs import ModelInfo
from msf_server.dependencies import CatalogDep

ModelName = Annotated[str, Path(alias="model", description="Name of a model.")]


async def find_newest(name: ModelName, catalog: CatalogDep) -> ModelInfo:
    """Return the newest served version of the model in the path."""
    return await catalog.find(name)


async def find_version(name: ModelName, version: str, catalog: CatalogDep) -> ModelInfo:
    """Return the version of the model in the path."""
    return await catalog.find(f"{name}:{version}")


async def follow_operators(catalog: CatalogDep) -> None:
    """Know what was loaded and unloaded at any server; for all but the busiest routes."""
    await catalog.refresh()
