"""Triton's statistics extension: counts and durations of each model version in this server process."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from msf_scheduler.jobs import ModelInfo
from msf_server.dependencies import CatalogDep, MetricsDep
from msf_server.metrics import Metrics
from msf_server.middleware.auth import bearer_auth
from msf_server.oip.models import ModelName, find_version
from msf_server.oip.schemas import OIP_ERRORS, Duration, InferenceStats, ModelStats, Statistics

router = APIRouter(tags=["open inference protocol"], responses=OIP_ERRORS, dependencies=[bearer_auth])


@router.get("/v2/models/stats", operation_id="getAllStatistics", summary="Statistics of all models")
async def all_statistics(catalog: CatalogDep, metrics: MetricsDep) -> Statistics:
    """Every registered version, since the start of this server process."""
    return Statistics(model_stats=[_statistics(model, metrics) for model in await catalog.models()])


@router.get("/v2/models/{model}/stats", operation_id="getModelStatistics", summary="Statistics of a model's versions")
async def model_statistics(name: ModelName, catalog: CatalogDep, metrics: MetricsDep) -> Statistics:
    """Report the statistics of every served version of a model."""
    await catalog.find(name)
    versions = [model for model in await catalog.models() if model.name == name]
    return Statistics(model_stats=[_statistics(model, metrics) for model in versions])


@router.get(
    "/v2/models/{model}/versions/{version}/stats",
    operation_id="getVersionStatistics",
    summary="Statistics of a version",
)
async def version_statistics(metrics: MetricsDep, model: ModelInfo = Depends(find_version)) -> Statistics:  # noqa: B008
    """Report the statistics of one version."""
    return Statistics(model_stats=[_statistics(model, metrics)])


def _statistics(model: ModelInfo, metrics: Metrics) -> ModelStats:
    totals = metrics.totals[model.name, model.version]
    success, fail = (
        Duration(count=count, ns=round(1e9 * seconds))
        for count, seconds in (metrics.answered(model, succeeded=succeeded) for succeeded in (True, False))
    )
    return ModelStats(
        name=model.name,
        version=model.version,
        last_inference=round(1000 * totals.last_ended_at),
        inference_count=totals.num_images,
        execution_count=totals.num_jobs,
        inference_stats=InferenceStats(
            success=success,
            fail=fail,
            queue=Duration(count=totals.num_jobs, ns=round(1e6 * totals.queue_ms)),
            compute_input=Duration(),
            compute_infer=Duration(count=totals.num_jobs, ns=round(1e6 * totals.stages_ms)),
            compute_output=Duration(count=totals.num_jobs, ns=round(1e6 * totals.output_ms)),
            cache_hit=Duration(count=totals.num_cached),
        ),
        batch_stats=[],
    )
