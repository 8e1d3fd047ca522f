"""`/v2/repository`: what could be served, and an operator's word on what is to be served.

The word is a state in Redis that workers follow; see `scheduler/desired.py`. The server itself loads nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Request, Response

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import ModelKey
from msf_scheduler.model_control import VersionReport, VersionState, WorkerReport
from msf_server.dependencies import Context, ServerContext
from msf_server.errors import InvalidRequest, ModelNotFound, Superseded, TimedOut, Unavailable, shown
from msf_server.middleware.auth import documented
from msf_server.oip.schemas import (
    OIP_ERRORS,
    IndexEntry,
    IndexRequest,
    LoadConfig,
    LoadRequest,
    OipError,
    UnloadRequest,
    VersionPolicy,
    body_of,
)
from msf_server.schemas import RequestBody

POLL_S = 0.1
REPORTS_WITHIN_S = 10.0  # a worker tells of its repository every second, unless it is very busy
BEST_FIRST = (VersionState.READY, VersionState.UNLOADING, VersionState.LOADING, VersionState.UNAVAILABLE)

Body = TypeVar("Body", bound=RequestBody)
ModelName = Annotated[str, Path(alias="model", description="A model's name.")]


async def _raw(request: Request) -> bytes:
    return await request.body()


Raw = Annotated[bytes, Depends(_raw)]

router = APIRouter(
    prefix="/v2/repository", tags=["open inference protocol"], responses=OIP_ERRORS, dependencies=[documented]
)


@router.post(
    "/index", summary="Every version that could be served", openapi_extra=body_of(IndexRequest, required=False)
)
async def index(raw: Raw, context: Context) -> list[IndexEntry]:
    """As the workers' model repositories are now, and whether each version is served by any of them."""
    asked = _parsed(IndexRequest, raw)
    best: dict[ModelKey, VersionReport] = {}
    for report in await _reports(context):
        for told in report.versions:
            key = told.name, told.version
            best[key] = min(best.get(key, told), told, key=lambda each: BEST_FIRST.index(each.state))
    for model in await context.catalog.models():  # those of workers that tell nothing of their repository
        if (model.name, model.version) not in best and context.catalog.is_served(model):
            best[model.name, model.version] = VersionReport(
                name=model.name, version=model.version, state=VersionState.READY
            )
    return [
        IndexEntry(**told.model_dump())
        for told in sorted(best.values(), key=lambda told: (told.name, len(told.version), told.version))
        if told.state is VersionState.READY or not asked.ready
    ]


@router.post(
    "/models/{model}/load",
    summary="Serve a model",
    response_class=Response,
    openapi_extra=body_of(LoadRequest, required=False),
    responses={
        409: {"model": OipError, "description": "Someone else said otherwise meanwhile."},
        504: {"model": OipError, "description": "Workers still load it."},
    },
)
async def load(name: ModelName, raw: Raw, context: Context) -> Response:
    """Answers once a worker serves every version that is wanted and all workers that have them are done loading.

    Without a `version_policy` all versions are wanted, as when a worker starts. What is served and not wanted any more
    is let go once the others are served. A failure changes nothing.
    """
    config = _parsed(LoadRequest, raw).parameters.config
    policy = _parsed(LoadConfig, config.encode(errors="replace")).version_policy
    desired = context.catalog.desired
    try:
        async with asyncio.timeout(context.settings.load_timeout_s):
            revision = await desired.ask()
            present = _versions_of(name, await _answers(revision, context))
            wanted = _chosen(policy, present, name)
            _, wishes = await desired.read()
            before = wishes[name].versions if name in wishes else None
            serving = await _serving(name, context) if before is None else before
            step = await desired.want(name, _ordered({*serving, *wanted}), since=revision)
            _check(step, name)
            problems = await _problems(name, wanted, step or 0, context)
            done = await desired.want(name, before if problems else wanted, since=step)
    except TimeoutError:
        raise TimedOut(
            f"{name} is not loaded after {context.settings.load_timeout_s:g} s. Workers go on to load it; "
            "POST /v2/repository/index tells when it is ready."
        ) from None
    _check(done, name)
    context.catalog.forget()
    if problems:
        raise InvalidRequest(f"Failed to load {name}: {'; '.join(problems)}.", code=ErrorCode.LOAD_FAILED)
    return Response()


@router.post(
    "/models/{model}/unload",
    summary="Stop serving a model",
    response_class=Response,
    openapi_extra=body_of(UnloadRequest, required=False),
)
async def unload(name: ModelName, raw: Raw, context: Context) -> Response:
    """No request is accepted for any of its versions from now on; those that were accepted are answered."""
    _parsed(UnloadRequest, raw)
    known = {model.name for model in await context.catalog.models()}
    if name not in known and not _versions_of(name, await _reports(context)):
        raise ModelNotFound(f"Unknown model {shown(name)}. Allowed: {', '.join(sorted(known))}.", param="model")
    await context.catalog.desired.want(name, ())
    context.catalog.forget()
    return Response()


def _parsed(model: type[Body], raw: bytes) -> Body:
    """An empty body is an empty object."""
    try:
        return model.model_validate(json.loads(raw or b"{}"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code=ErrorCode.INVALID_JSON) from error


def _chosen(policy: VersionPolicy, present: Sequence[str], name: str) -> list[str]:
    """Raises InvalidRequest, ModelNotFound."""
    if not present:
        raise ModelNotFound(f"Failed to load {shown(name)}: no worker has it in its model repository.", param="model")
    match policy:
        case VersionPolicy(all={}, latest=None, specific=None):
            return list(present)
        case VersionPolicy(all=None, latest=latest, specific=None) if latest:
            return list(present[-latest.num_versions :])
        case VersionPolicy(all=None, latest=None, specific=specific) if specific:
            chosen = _ordered({str(version) for version in specific.versions})
            if missing := [version for version in chosen if version not in present]:
                raise ModelNotFound(
                    f"Failed to load {name}: no worker has its version {missing[0]}. Allowed: {', '.join(present)}."
                )
            return chosen
    raise InvalidRequest("Invalid version_policy. Allowed: exactly one of all, latest and specific.")


async def _serving(name: str, context: ServerContext) -> list[str]:
    workers = await context.registry.workers()
    return [model.version for worker in workers for model in worker.models if model.name == name]


async def _reports(context: ServerContext) -> list[WorkerReport]:
    return await context.catalog.desired.reports([worker.id for worker in await context.registry.workers()])


async def _answers(revision: int, context: ServerContext) -> list[WorkerReport]:
    """The workers' reports since `revision`. Raises Unavailable where none comes."""
    deadline = asyncio.get_running_loop().time() + REPORTS_WITHIN_S
    while True:
        reports = await _reports(context)
        answers = [report for report in reports if report.revision >= revision]
        is_late = asyncio.get_running_loop().time() > deadline  # then some worker is dying, or too busy to tell
        if answers and (is_late or len(answers) == len(reports)):
            return answers
        if is_late:
            raise Unavailable("No worker tells what is in its model repository.", code=ErrorCode.NO_WORKER)
        await asyncio.sleep(POLL_S)


async def _problems(name: str, wanted: Collection[str], revision: int, context: ServerContext) -> list[str]:
    """Why versions cannot be served as they are, once every worker has tried."""
    while True:
        told = [each for report in await _answers(revision, context) for each in report.versions]
        told = [each for each in told if each.name == name and each.version in wanted]
        if all(each.state is not VersionState.LOADING for each in told):
            break
        await asyncio.sleep(POLL_S)
    ready = [each for each in told if each.state is VersionState.READY]
    served = {each.version for each in ready}
    changed = {f"version {each.version}: {each.reason}" for each in ready if each.reason}
    failed = {f"version {each.version}: {each.reason}" for each in told if each.version not in served}
    gone = {f"version {version} is gone" for version in {*wanted} - {each.version for each in told}}
    return sorted(changed | failed | gone)


def _versions_of(name: str, reports: Sequence[WorkerReport]) -> list[str]:
    return _ordered({told.version for report in reports for told in report.versions if told.name == name})


def _ordered(versions: Collection[str]) -> list[str]:
    return sorted(versions, key=lambda version: (len(version), version))  # they are numbers


def _check(revision: int | None, name: str) -> None:
    if revision is None:
        raise Superseded(f"Someone else loads or unloads {name} at the same time, and that stands.")
