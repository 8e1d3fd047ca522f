"""`/v2/repository`: which model versions exist, and loading and unloading them.

A load or unload is stored in Redis as the desired state, which workers follow (`msf_scheduler/model_control.py`); the
server itself loads nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.model_control import ModelControl, VersionState, WorkerReport
from msf_scheduler.registry import Registry
from msf_server.dependencies import CatalogDep, ModelControlDep, RegistryDep, SettingsDep
from msf_server.errors import ApiError, InvalidRequest, quoted
from msf_server.middleware.auth import bearer_auth
from msf_server.oip.body_schemas import body_of
from msf_server.oip.models import ModelName
from msf_server.oip.schemas import (
    OIP_ERRORS,
    IndexEntry,
    IndexRequest,
    LoadConfig,
    LoadRequest,
    OipError,
    UnloadRequest,
    VersionPolicy,
)
from msf_server.schemas.body import RequestBody, parse_json

VERSION = re.compile(r"0|[1-9][0-9]*")
POLL_S = 0.1
REPORTS_WITHIN_S = 10.0  # workers report every second, unless they are very busy

Body = TypeVar("Body", bound=RequestBody)

router = APIRouter(
    prefix="/v2/repository", tags=["open inference protocol"], responses=OIP_ERRORS, dependencies=[bearer_auth]
)


async def _body(request: Request) -> bytes:
    return await request.body()


class WorkerReports:
    """Reads the reports of the live workers about their model repositories."""

    def __init__(self, registry: Registry, control: ModelControl) -> None:
        self._registry = registry
        self._control = control

    async def latest(self) -> list[WorkerReport]:
        """Return the latest report of each worker that has one."""
        return await self._control.reports([worker.id for worker in await self._registry.workers()])

    async def since(self, revision: int) -> list[WorkerReport]:
        """Wait for the workers' reports on `revision`. Raises ApiError if none arrives."""
        deadline = asyncio.get_running_loop().time() + REPORTS_WITHIN_S
        while True:
            reports = await self.latest()
            current = [report for report in reports if report.revision >= revision]
            is_late = asyncio.get_running_loop().time() > deadline  # some worker is dying, or too busy to report
            if current and (is_late or len(current) == len(reports)):
                return current
            if is_late:
                raise ApiError("No worker reports its model repository.", code=ErrorCode.NO_WORKER)
            await asyncio.sleep(POLL_S)

    async def loaded(self, name: str) -> list[str]:
        """Return the versions of a model that workers serve."""
        workers = await self._registry.workers()
        return [model.version for worker in workers for model in worker.models if model.name == name]

    async def problems(self, name: str, versions: Collection[str], revision: int) -> list[str]:
        """Wait until every worker has tried to load `versions`; return why some cannot be served as they are."""
        while True:
            reports = [version for report in await self.since(revision) for version in report.versions]
            reports = [report for report in reports if report.name == name and report.version in versions]
            if all(report.state is not VersionState.LOADING for report in reports):
                break
            await asyncio.sleep(POLL_S)
        ready = [report for report in reports if report.state is VersionState.READY]
        served = {report.version for report in ready}
        changed = {f"version {report.version}: {report.reason}" for report in ready if report.reason}
        failed = {f"version {report.version}: {report.reason}" for report in reports if report.version not in served}
        missing = {f"version {version} is gone" for version in {*versions} - {report.version for report in reports}}
        return sorted(changed | failed | missing)


async def _worker_reports(registry: RegistryDep, control: ModelControlDep) -> WorkerReports:
    return WorkerReports(registry, control)


BodyDep = Annotated[bytes, Depends(_body)]
WorkerReportsDep = Annotated[WorkerReports, Depends(_worker_reports)]


@router.post(
    "/index",
    operation_id="listRepository",
    summary="List every version that could be served",
    openapi_extra=body_of(IndexRequest, required=False),
)
async def index(body: BodyDep, catalog: CatalogDep) -> list[IndexEntry]:
    """Versions in the workers' model repositories, each with the best state that any worker reports.

    A folder of the repository that is no version of a model is UNAVAILABLE, with the reason.
    """
    only_ready = _parsed(IndexRequest, body).ready
    catalog.forget()
    await catalog.refresh()
    return [
        IndexEntry(**report.model_dump())
        for report in catalog.reports()
        if report.state is VersionState.READY or not only_ready
    ]


@router.post(
    "/models/{model}/load",
    operation_id="loadModel",
    summary="Load a model",
    response_class=Response,
    openapi_extra=body_of(LoadRequest, required=False),
    responses={
        409: {"model": OipError, "description": "A concurrent load or unload superseded this one."},
        504: {"model": OipError, "description": "Workers are still loading it."},
    },
)
async def load(
    name: ModelName,
    body: BodyDep,
    workers: WorkerReportsDep,
    control: ModelControlDep,
    catalog: CatalogDep,
    settings: SettingsDep,
) -> Response:
    """Answer once a worker serves every requested version and all workers that have them are done loading.

    Without a `version_policy`, all versions are requested, as at a worker's start. Versions that are served but not
    requested are unloaded once the others are served. A failure changes nothing.
    """
    config = _parsed(LoadRequest, body).parameters.config
    policy = _parsed(LoadConfig, config.encode(errors="replace")).version_policy
    try:
        async with asyncio.timeout(settings.load_timeout_s):
            revision = await control.next_revision()
            available = _versions_of(name, await workers.since(revision))
            versions = _selected(policy, available, name)
            _, desired_models = await control.read()
            previous = desired_models[name].versions if name in desired_models else None
            serving = await workers.loaded(name) if previous is None else previous
            added = await control.set_versions(name, _ordered({*serving, *versions}), since=revision)
            _check(added, name)
            problems = await workers.problems(name, versions, added or 0)
            final = await control.set_versions(name, previous if problems else versions, since=added)
    except TimeoutError:
        raise ApiError(
            f"{name} is not loaded after {settings.load_timeout_s:g} s. Workers continue to load it; "
            "POST /v2/repository/index shows when it is ready.",
            code=ErrorCode.TIMEOUT,
        ) from None
    _check(final, name)
    catalog.forget()
    if problems:
        raise InvalidRequest(f"Failed to load {name}: {'; '.join(problems)}.", code=ErrorCode.LOAD_FAILED)
    return Response()


@router.post(
    "/models/{model}/unload",
    operation_id="unloadModel",
    summary="Unload a model",
    response_class=Response,
    openapi_extra=body_of(UnloadRequest, required=False),
)
async def unload(
    name: ModelName, body: BodyDep, workers: WorkerReportsDep, control: ModelControlDep, catalog: CatalogDep
) -> Response:
    """Refuse new requests for all of its versions; accepted ones are answered."""
    _parsed(UnloadRequest, body)
    names = {model.name for model in await catalog.models()}
    if name not in names and not _versions_of(name, await workers.latest()):
        raise InvalidRequest(
            f"Unknown model {quoted(name)}. Allowed: {', '.join(sorted(names))}.",
            param="model",
            code=ErrorCode.MODEL_NOT_FOUND,
        )
    await control.set_versions(name, ())
    catalog.forget()
    return Response()


def _parsed(model: type[Body], body: bytes) -> Body:
    """Parse a body; an empty one is an empty object."""
    return model.model_validate(parse_json(body or b"{}"))


def _selected(policy: VersionPolicy, available: Sequence[str], name: str) -> list[str]:
    """Return the versions that `policy` selects. Raises InvalidRequest."""
    if not available:
        raise InvalidRequest(
            f"Failed to load {quoted(name)}: no worker has it in its model repository.",
            param="model",
            code=ErrorCode.MODEL_NOT_FOUND,
        )
    match policy:
        case VersionPolicy(all={}, latest=None, specific=None):
            return list(available)
        case VersionPolicy(all=None, latest=latest, specific=None) if latest:
            return list(available[-latest.num_versions :])
        case VersionPolicy(all=None, latest=None, specific=specific) if specific:
            selected = _ordered({str(version) for version in specific.versions})
            if missing := [version for version in selected if version not in available]:
                raise InvalidRequest(
                    f"Failed to load {name}: no worker has version {missing[0]}. Allowed: {', '.join(available)}.",
                    code=ErrorCode.MODEL_NOT_FOUND,
                )
            return selected
    raise InvalidRequest("Invalid version_policy. Allowed: exactly one of all, latest and specific.")


def _versions_of(name: str, reports: Sequence[WorkerReport]) -> list[str]:
    versions = {version.version for report in reports for version in report.versions if version.name == name}
    return _ordered({version for version in versions if VERSION.fullmatch(version)})  # not folders of other names


def _ordered(versions: Collection[str]) -> list[str]:
    return sorted(versions, key=lambda version: (len(version), version))  # they are numbers


def _check(revision: int | None, name: str) -> None:
    if revision is None:
        raise InvalidRequest(f"A concurrent load or unload of {name} superseded this one.", code=ErrorCode.SUPERSEDED)
