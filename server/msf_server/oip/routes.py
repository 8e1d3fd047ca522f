"""`/v2`: the Open Inference Protocol with Triton's extensions, for `tritonclient` and KServe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from importlib.metadata import version as version_of
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.routing import BaseRoute

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import ServerStopping
from msf_scheduler.job_events import JobWatcher
from msf_scheduler.jobs import JobRecord, ModelInfo
from msf_scheduler.queue import Idempotency
from msf_server.callers import identify
from msf_server.dependencies import CatalogDep, Services, SettingsDep, SubmissionDep, services_of
from msf_server.errors import ApiError, InvalidRequest
from msf_server.measured_route import MeasuredRoute
from msf_server.middleware.auth import bearer_auth
from msf_server.oip.body_schemas import infer_body
from msf_server.oip.inference import INPUTS, LABEL, OUTPUT, PARAMETERS, make_orders, wants_binary
from msf_server.oip.models import find_default, find_version, follow_operators
from msf_server.oip.schemas import (
    OIP_ERRORS,
    ConfigTensor,
    InferResponse,
    ModelConfiguration,
    ModelMetadata,
    ModelReady,
    Parameters,
    ServerMetadata,
    StringValue,
    TensorMetadata,
)
from msf_server.oip.tensors import BYTES, check_output, read_request, write_response
from msf_server.orders import Order
from msf_server.request_log import log_of
from msf_server.schemas.body import JSON, check_media_type

PREVIEWS = "msf.previews"  # extension of the ASGI scope: OnPreview, of a caller that can take previews
OnPreview = Callable[[int, int, bytes], None]  # row, number and file of a preview
PLATFORM = "msf_serve"
EXTENSIONS = [
    *("binary_tensor_data", "model_configuration", "model_repository"),
    *("parameters", "schedule_policy", "statistics"),
]
BODY_TYPES = (JSON, "application/octet-stream")
DATA_TYPES = {BYTES: "TYPE_STRING", "FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64"}
LIMITS = ("default_num_steps", "max_num_steps", "default_guidance_scale", "max_guidance_scale")

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_INFER_BODY = infer_body(
    _BINARY,
    inputs=INPUTS,
    required_input=LABEL,
    parameters={name: schema for name, schema in PARAMETERS.items() if name != "partial_images"},  # gRPC's
    example={
        "inputs": [
            {"name": "label", "shape": [3], "datatype": "BYTES", "data": ["sneaker", "bag", "7"]},
            {"name": "seed", "shape": [1], "datatype": "INT64", "data": [7]},
        ]
    },
)
_INFER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The images: JSON, or JSON followed by their bytes.", "content": _BINARY}
}

_about: dict[str, Any] = {"tags": ["open inference protocol"], "responses": OIP_ERRORS}
router = APIRouter(**_about)


@router.get("/v2", operation_id="getServerMetadata", summary="Server metadata")
async def server_metadata() -> ServerMetadata:
    """Name the server, its version and the protocol extensions that it implements."""
    return ServerMetadata(name="msf-serve", version=version_of("msf-serve"), extensions=EXTENSIONS)


async def _body(request: Request) -> bytes:
    """Read the body before the model is looked up: a slow body must not outlast the version that was found."""
    if "origin" in request.headers:  # browsers send other types across origins without a preflight request
        check_media_type(request.headers, BODY_TYPES)
    return await request.body()


def _routes_of(find: Any, path: str, kind: str) -> list[BaseRoute]:
    """Return the routes of a model, which `find` looks up from `path`; `kind` is part of their operation ids."""
    routes = APIRouter(prefix=path, dependencies=[Depends(follow_operators)], **_about)

    @routes.get("", operation_id=f"get{kind}Metadata", summary="Model metadata: inputs and outputs")
    async def metadata(catalog: CatalogDep, model: ModelInfo = Depends(find)) -> ModelMetadata:  # noqa: B008
        """Name the inputs and output, their types and shapes, and the versions that are served now."""
        size = model.image_size
        return ModelMetadata(
            name=model.name,
            versions=[
                other.version
                for other in await catalog.models()
                if other.name == model.name and catalog.is_served(other)
            ],
            platform=PLATFORM,
            inputs=[TensorMetadata(name=name, datatype=types[0], shape=[-1, 1]) for name, types in INPUTS.items()],
            outputs=[TensorMetadata(name=OUTPUT, datatype="UINT8", shape=[-1, size, size, 3])],
        )

    @routes.get("/config", operation_id=f"get{kind}Config", summary="Model configuration in Triton's format")
    async def configuration(
        settings: SettingsDep,
        catalog: CatalogDep,
        model: ModelInfo = Depends(find),  # noqa: B008
    ) -> ModelConfiguration:
        """`parameters` hold the class names, the defaults and limits of requests, and the model's aliases."""
        aliases = {
            alias: dict(weights)
            for alias, weights in catalog.aliases().items()
            if alias.partition(":")[0] == model.name
        }
        parameters = {
            "labels": json.dumps(model.labels),
            "aliases": json.dumps(aliases),
            **{name: str(getattr(model, name)) for name in LIMITS},
        }
        return ModelConfiguration(
            name=model.name,
            platform=PLATFORM,
            backend=PLATFORM,
            max_batch_size=settings.max_images_per_request,
            input=[
                ConfigTensor(name=name, data_type=DATA_TYPES[types[0]], dims=[1], optional=name != LABEL)
                for name, types in INPUTS.items()
            ],
            output=[ConfigTensor(name=OUTPUT, data_type="TYPE_UINT8", dims=[model.image_size, model.image_size, 3])],
            parameters={name: StringValue(string_value=value) for name, value in parameters.items()},
        )

    @routes.get("/ready", operation_id=f"check{kind}Ready", summary="Check that a model can be used now")
    async def ready(
        submission: SubmissionDep,
        catalog: CatalogDep,
        model: ModelInfo = Depends(find),  # noqa: B008
    ) -> ModelReady:
        """Answer 200 if a worker serves the model and this server is not draining; else 503."""
        if submission.drain.has_begun:
            raise ServerStopping
        if not catalog.is_served(model):
            problem = catalog.problem(model)
            raise ApiError(
                f"No worker serves {model.name}:{model.version} now{': ' * bool(problem)}{problem}.",
                code=ErrorCode.NO_WORKER,
            )
        return ModelReady(name=model.name, ready=True)

    measured = APIRouter(prefix=path, route_class=MeasuredRoute, **_about)

    @measured.post(
        "/infer",
        operation_id=f"infer{kind}",
        summary="Generate images",
        dependencies=[bearer_auth],
        response_model=InferResponse,
        response_model_exclude_none=True,
        responses=_INFER_RESPONSES,
        openapi_extra=_INFER_BODY,
    )
    async def infer(
        request: Request,
        body: bytes = Depends(_body),
        model: ModelInfo = Depends(find),  # noqa: B008
    ) -> Response:
        """Each row of `label` is one image; every other input has a value for each row, or one for all.

        Rows that share a seed are its successive samples, as with `n` and `first_index` of an image request: row `i`
        equals a single image with `first_index` `i`. Tensors are sent as JSON or by the binary tensor extension.
        """
        services, log = services_of(request), log_of(request.scope)
        log.model = model
        call, inputs = read_request(body, request.headers)
        key = request.headers.get("idempotency-key")
        idempotency = Idempotency(key, body) if key is not None else None
        availability = services.catalog.availability(model)
        orders = make_orders(call, inputs, model, availability, identify(request), services.settings, idempotency)
        num_images = sum(order.spec.num_samples for order in orders)
        check_output(num_images, model.image_size, binary=wants_binary(call))
        on_preview = request.scope.get("extensions", {}).get(PREVIEWS)
        if "partial_images" in call.parameters and on_preview is None:
            raise InvalidRequest("Invalid partial_images. Allowed: in a stream over gRPC.", param="partial_images")
        results = await _run_all(orders, services, request, on_preview)
        answer = InferResponse(
            id=call.id,
            model_name=model.name,
            model_version=results[0][0].spec.version,  # not `model`'s if an idempotency key was used before
            parameters=_common_parameters([job for job, _ in results]),
            outputs=[],
        )
        files = [file for _, job_files in results for file in job_files]
        content, headers = await asyncio.to_thread(
            write_response, answer, files, model.image_size, binary=wants_binary(call)
        )
        return Response(content, headers=headers)

    return [*routes.routes, *measured.routes]


async def _run_all(
    orders: Sequence[Order], services: Services, request: Request, on_preview: OnPreview | None
) -> list[tuple[JobRecord, list[bytes]]]:
    """Run all orders concurrently; if one fails, cancel the others and raise the first failure."""
    submission, log = services.submission, log_of(request.scope)

    async def run(order: Order, first_row: int) -> tuple[JobRecord, list[bytes]]:
        pending = await submission.submit(order, log, notify=True)
        if on_preview is None or not order.terms.num_previews:
            return await submission.wait(pending, request)
        watching = asyncio.create_task(_watch(services.watcher, pending.job, first_row, on_preview))
        try:
            result = await submission.wait(pending, request)
            await watching  # which ends with the job: previews come before the images
            return result
        finally:
            watching.cancel()

    first_rows = accumulate((order.spec.num_samples for order in orders), initial=0)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(order, row)) for order, row in zip(orders, first_rows, strict=False)]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _watch(watcher: JobWatcher, job: JobRecord, first_row: int, on_preview: OnPreview) -> None:
    """Hand the previews of a job over, each with its row, its number and its file."""
    async with aclosing(watcher.follow(job.id)) as updates:
        async for update in updates:
            for stored in update.previews:
                row = first_row + stored.preview.index - job.spec.first_index
                on_preview(row, stored.preview.number, stored.file)


def _common_parameters(jobs: Sequence[JobRecord]) -> Parameters:
    """Return the parameters that are equal for all images."""
    per_job: list[dict[str, Any]] = [
        {
            "seed": job.spec.seed,
            "num_steps": job.spec.num_steps,
            "guidance_scale": job.spec.guidance_scale,
            "job_id": job.id,
            **(job.provenance.model_dump() if job.provenance else {}),
        }
        for job in jobs
    ]
    return {
        name: value
        for name, value in per_job[0].items()
        if all(parameters.get(name) == value for parameters in per_job)
    }


router.routes.extend(_routes_of(find_default, "/v2/models/{model}", "Model"))
router.routes.extend(_routes_of(find_version, "/v2/models/{model}/versions/{version}", "Version"))
