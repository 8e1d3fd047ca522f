"""`/v2`: the Open Inference Protocol with Triton's extensions, as `tritonclient` and KServe speak it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from importlib.metadata import version as version_of
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import ModelInfo
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import InvalidRequest, Unavailable, shown
from msf_server.metrics import MeasuredRoute
from msf_server.middleware.auth import documented
from msf_server.oip.inference import INPUTS, LABEL, OUTPUT, read_orders, wants_binary
from msf_server.oip.schemas import (
    OIP_ERRORS,
    ConfigTensor,
    Duration,
    InferenceStats,
    InferRequest,
    InferResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    ModelStats,
    Parameters,
    ServerMetadata,
    Statistics,
    StringValue,
    TensorMetadata,
    body_of,
)
from msf_server.oip.tensors import BYTES, read_request, write_response
from msf_server.orders import Order
from msf_server.submission import Completed, complete

PLATFORM = "msf_serve"
EXTENSIONS = [
    *("binary_tensor_data", "model_configuration", "model_repository"),
    *("parameters", "schedule_policy", "statistics"),
]
BODY_TYPES = ("application/json", "application/octet-stream")
DATA_TYPES = {BYTES: "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64"}
ModelName = Annotated[str, Path(alias="model", description="A model's name.")]

router = APIRouter(tags=["open inference protocol"], responses=OIP_ERRORS)


async def _newest(name: ModelName, context: Context) -> ModelInfo:
    return await context.catalog.find(name)


async def _exactly(name: ModelName, version: str, context: Context) -> ModelInfo:
    return await context.catalog.find(f"{name}:{version}")


async def _body(request: Request) -> bytes:
    """Read before the model is looked up: a slow body must not outlast the version that was found."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if "origin" in request.headers and content_type not in BODY_TYPES:
        # Of other types, browsers send bodies for any page to anywhere without asking there first.
        raise InvalidRequest(f"Invalid Content-Type: {shown(content_type)}. Allowed: {', '.join(BODY_TYPES)}.")
    return await request.body()


@router.get("/v2", summary="What this server is")
async def server_metadata() -> ServerMetadata:
    return ServerMetadata(name="msf-serve", version=version_of("msf-serve"), extensions=EXTENSIONS)


@router.get("/v2/models/stats", summary="Statistics of all models", dependencies=[documented])
async def all_statistics(context: Context) -> Statistics:
    """Of this server process since its start, every version that workers ever registered."""
    return Statistics(model_stats=[_statistics(model, context) for model in await context.catalog.models()])


@router.get("/v2/models/{model}/stats", summary="Statistics of a model's versions", dependencies=[documented])
async def model_statistics(name: ModelName, context: Context) -> Statistics:
    await context.catalog.find(name)
    known = await context.catalog.models()
    return Statistics(model_stats=[_statistics(model, context) for model in known if model.name == name])


@router.get("/v2/models/{model}/versions/{version}/stats", summary="A version's statistics", dependencies=[documented])
async def version_statistics(context: Context, model: Annotated[ModelInfo, Depends(_exactly)]) -> Statistics:
    return Statistics(model_stats=[_statistics(model, context)])


def _routes_of(find: Any, path: str) -> APIRouter:
    """What there is for a model's newest version and for each of its versions alike."""
    routes = APIRouter(prefix=path)

    @routes.get("", summary="A model's inputs and outputs")
    async def metadata(context: Context, model: ModelInfo = Depends(find)) -> ModelMetadata:  # noqa: B008
        known = await context.catalog.models()
        size = model.image_size
        return ModelMetadata(
            name=model.name,
            versions=[each.version for each in known if each.name == model.name and context.catalog.is_served(each)],
            platform=PLATFORM,
            inputs=[TensorMetadata(name=name, datatype=types[0], shape=[-1, 1]) for name, types in INPUTS.items()],
            outputs=[TensorMetadata(name=OUTPUT, datatype="UINT8", shape=[-1, size, size, 3])],
        )

    @routes.get("/config", summary="A model's configuration in Triton's words")
    async def configuration(context: Context, model: ModelInfo = Depends(find)) -> ModelConfiguration:  # noqa: B008
        """`parameters` tell the class names, and the defaults and limits of what may be asked for."""
        told = {
            "labels": json.dumps(model.labels),
            **{
                name: str(getattr(model, name))
                for name in ("default_num_steps", "max_num_steps", "default_guidance_scale", "max_guidance_scale")
            },
        }
        return ModelConfiguration(
            name=model.name,
            platform=PLATFORM,
            backend=PLATFORM,
            max_batch_size=context.settings.max_images_per_request,
            input=[
                ConfigTensor(name=name, data_type=DATA_TYPES[types[0]], dims=[1], optional=name != LABEL)
                for name, types in INPUTS.items()
            ],
            output=[ConfigTensor(name=OUTPUT, data_type="TYPE_UINT8", dims=[model.image_size, model.image_size, 3])],
            parameters={name: StringValue(string_value=value) for name, value in told.items()},
        )

    @routes.get("/ready", summary="Can a model be asked for images now")
    async def ready(context: Context, model: ModelInfo = Depends(find)) -> ModelReady:  # noqa: B008
        if context.draining:
            raise Unavailable("This server is shutting down.", code=ErrorCode.DRAINING)
        if not context.catalog.is_served(model):
            raise Unavailable(f"No worker serves {model.name}:{model.version} now.", code=ErrorCode.NO_WORKER)
        return ModelReady(name=model.name, ready=True)

    measured = APIRouter(prefix=path, route_class=MeasuredRoute)

    @measured.post(
        "/infer",
        summary="Make images",
        dependencies=[documented],
        response_model=InferResponse,
        response_model_exclude_none=True,
        responses=_INFER_RESPONSES,
        openapi_extra=_INFER_BODY,
    )
    async def infer(
        request: Request,
        context: Context,
        raw: bytes = Depends(_body),
        model: ModelInfo = Depends(find),  # noqa: B008
    ) -> Response:
        """One row of `label` is one image; every other input has a value for each row or one for all.

        Rows that share a seed are its successive samples, as with `n` and `first_index` of an image request: row `i`
        is the same image alone, with `first_index` `i`. Tensors come and go as JSON or by the binary tensor extension.
        """
        request.state.model = model
        asked, inputs = read_request(raw, request.headers, context.settings.max_body_bytes)
        jobs = await _complete_all(await read_orders(asked, inputs, model, raw, request, context), context, request)
        for job in jobs:
            context.metrics.observe_images(model, len(job.images), cached=job.is_cached)
        answer = InferResponse(
            id=asked.id, model_name=model.name, model_version=model.version, parameters=_common(jobs), outputs=[]
        )
        files = [file for job in jobs for file in job.images]
        body, headers = await asyncio.to_thread(
            write_response, answer, files, model.image_size, binary=wants_binary(asked)
        )
        return Response(body, headers=headers)

    both = APIRouter()
    both.include_router(routes)
    both.include_router(measured)
    return both


async def _complete_all(orders: Sequence[Order], context: ServerContext, request: Request) -> list[Completed]:
    """Side by side; when one fails, the others are cancelled and the first failure is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(complete(order, context, request)) for order in orders]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _common(jobs: Sequence[Completed]) -> Parameters:
    """What is true of all images alike."""
    told: list[dict[str, Any]] = []
    for done in jobs:
        spec, made = done.job.spec, done.job.provenance
        told.append(
            {
                "seed": spec.seed,
                "num_steps": spec.num_steps,
                "guidance_scale": spec.guidance_scale,
                "job_id": done.job.id,
                **(made.model_dump() if made else {}),
            }
        )
    return {name: value for name, value in told[0].items() if all(each.get(name) == value for each in told)}


def _statistics(model: ModelInfo, context: ServerContext) -> ModelStats:
    totals = context.metrics.totals[model.name, model.version]
    requests = {which: context.metrics.waits(model, succeeded=which == "success") for which in ("success", "fail")}
    return ModelStats(
        name=model.name,
        version=model.version,
        last_inference=round(1000 * totals.last_ended_at),
        inference_count=totals.num_images,
        execution_count=totals.num_jobs,
        inference_stats=InferenceStats(
            **{which: Duration(count=count, ns=round(1e9 * seconds)) for which, (count, seconds) in requests.items()},
            queue=Duration(count=totals.num_jobs, ns=round(1e6 * totals.queue_ms)),
            compute_input=Duration(),
            compute_infer=Duration(count=totals.num_jobs, ns=round(1e6 * totals.stages_ms)),
            compute_output=Duration(count=totals.num_jobs, ns=round(1e6 * totals.output_ms)),
            cache_hit=Duration(count=totals.num_cached),
        ),
        batch_stats=[],
    )


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_INFER_BODY = body_of(
    InferRequest,
    _BINARY,
    required=True,
    example={
        "inputs": [
            {"name": "label", "shape": [3], "datatype": "BYTES", "data": ["sneaker", "bag", "7"]},
            {"name": "seed", "shape": [1], "datatype": "INT64", "data": [7]},
        ]
    },
)
_INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The images: JSON, or JSON and their bytes behind it.", "content": _BINARY}
}
for _path, _find in (("/v2/models/{model}", _newest), ("/v2/models/{model}/versions/{version}", _exactly)):
    router.include_router(_routes_of(_find, _path))
