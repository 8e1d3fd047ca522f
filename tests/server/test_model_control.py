"""Loading and unloading as the server handles it; tests/cli/test_repository.py has the workers' side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from msf_scheduler.jobs import ModelInfo
from msf_scheduler.model_control import ModelControl, VersionReport, VersionState, WorkerReport
from msf_scheduler.registry import Registry
from msf_server.api_keys import digest, new_key
from msf_server.app import create_app
from msf_server.oip import model_control
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening_to, serving, until
from tests.server.fake_worker import FASHION, FakeWorker

LOAD, UNLOAD, INDEX = (
    *(f"/v2/repository/models/fashion/{verb}" for verb in ("load", "unload")),
    "/v2/repository/index",
)
ALIAS = "/v2/repository/aliases/fashion"
IMAGES = "/v1/images/generations"
READY, LOADING, UNAVAILABLE = VersionState.READY, VersionState.LOADING, VersionState.UNAVAILABLE


class Reports:
    """Repeated reports of the fake worker about its repository; a test changes `states`."""

    def __init__(self, desired: ModelControl, worker: FakeWorker) -> None:
        self.desired = desired
        self.worker = worker
        self.states: dict[str, tuple[VersionState, str]] = {"1": (READY, "")}

    async def run(self) -> None:
        while True:
            revision, _ = await self.desired.read()
            versions = tuple(
                VersionReport(name="fashion", version=version, state=state, reason=reason)
                for version, (state, reason) in self.states.items()
            )
            await self.desired.report(self.worker.info.id, WorkerReport(revision=revision, versions=versions))
            await asyncio.sleep(0.02)

    async def wanted(self) -> tuple[str, ...] | None:
        desired = (await self.desired.read())[1].get("fashion")
        return desired.versions if desired else None


@pytest.fixture
async def reports(app: FastAPI, worker: FakeWorker) -> AsyncIterator[Reports]:
    reports = Reports(app.state.services.model_control, worker)
    running = asyncio.create_task(reports.run())
    yield reports
    running.cancel()


async def status(client: httpx.AsyncClient, model: str) -> tuple[int, str]:
    answer = await client.post(IMAGES, json={"prompt": "bag", "model": model})
    return answer.status_code, answer.json().get("version") or answer.json()["error"]["code"]


async def test_an_unloaded_model_is_refused_and_its_jobs_are_answered(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    worker.holding = True
    accepted = asyncio.create_task(status(client, "fashion"))
    await until(lambda: len(worker.claimed), 1)
    answer = await client.post(UNLOAD, json={"parameters": {"unload_dependents": False}})
    assert (answer.status_code, answer.content) == (200, b"")
    for model in ("fashion", "fashion:1"):
        assert await status(client, model) == (404, "model_not_loaded")
    assert (await client.get("/v2/models/fashion/ready")).status_code == 404
    assert not (await client.get("/v1/models")).json()["data"][0]["served"]
    worker.holding = False
    assert await accepted == (200, "1")


async def test_another_server_follows_an_unload(settings: ServerSettings, client: httpx.AsyncClient) -> None:
    async with serving(settings) as other_app, client_of(other_app) as other:
        assert await status(other, "fashion") == (200, "1")
        await client.post(UNLOAD)
        await until(lambda: status(other, "fashion"), (404, "model_not_loaded"))


async def test_the_old_version_is_unloaded_once_the_new_one_is_served(
    client: httpx.AsyncClient, worker: FakeWorker, reports: Reports
) -> None:
    reports.states["2"] = (UNAVAILABLE, "not loaded")
    loading = asyncio.create_task(
        client.post(LOAD, json={"parameters": {"config": '{"version_policy": {"latest": {"num_versions": 1}}}'}})
    )
    reports.states["2"] = (LOADING, "")
    await until(reports.wanted, ("1", "2"))
    assert await status(client, "fashion") == (200, "1")
    second = FASHION.model_copy(update={"version": "2"})
    await worker.registry.register(worker.info.model_copy(update={"models": (FASHION, second)}))
    reports.states["2"] = (READY, "")
    assert (await loading).status_code == 200
    assert await reports.wanted() == ("2",)
    assert (await client.get("/v2/models/fashion")).json()["versions"] == ["2"]
    assert (await client.get("/v2/models/fashion/versions/1/ready")).status_code == 404


async def test_every_server_agrees_at_once_after_a_load(
    settings: ServerSettings, client: httpx.AsyncClient, worker: FakeWorker, reports: Reports
) -> None:
    second = FASHION.model_copy(update={"version": "2"})
    await worker.registry.register(worker.info.model_copy(update={"models": (FASHION, second)}))
    reports.states["2"] = (READY, "")
    async with serving(settings) as other_app, client_of(other_app) as other:
        for version, former in (("2", "1"), ("1", "2"), ("2", "1")):
            config = f'{{"version_policy": {{"specific": {{"versions": [{version}]}}}}}}'
            assert (await client.post(LOAD, json={"parameters": {"config": config}})).status_code == 200
            for server in (other, client):
                path = "/v2/models/fashion/versions"
                assert (await server.get(f"{path}/{version}/ready")).status_code == 200
                assert (await server.get(f"{path}/{former}/ready")).status_code == 404
                states = {each["version"]: each["state"] for each in (await server.post(INDEX)).json()}
                assert states == {version: "READY", former: "UNLOADING"}
                served = {each["id"]: each["served"] for each in (await server.get("/v1/models")).json()["data"]}
                assert served == {f"fashion:{version}": True, f"fashion:{former}": False}
                assert (await server.get("/v2/health/ready")).status_code == 200


async def test_a_refused_version_is_named_with_its_reason(client: httpx.AsyncClient, reports: Reports) -> None:
    reports.states |= {
        "2": (UNAVAILABLE, "its weights are damaged"),
        "3": (LOADING, ""),
        "²": (UNAVAILABLE, "no number"),
    }

    async def refused() -> list[dict[str, str]]:
        answer: list[dict[str, str]] = (await client.get("/v1/models")).json()["refused"]
        return answer

    expected = [
        {"id": "fashion:2", "reason": "its weights are damaged"},
        {"id": "fashion:²", "reason": "no number"},
    ]
    await until(refused, expected)
    body = {"prompt": "bag", "model": "fashion:2"}
    answer = await client.post(IMAGES, json=body)
    assert answer.status_code == 404
    assert "Version 2 cannot be served: its weights are damaged." in answer.json()["error"]["message"]
    answer = await client.post(IMAGES, json=body | {"model": "fashion:3"})
    assert answer.status_code == 503
    assert "is still being loaded" in answer.json()["error"]["message"]
    assert await status(client, "fashion") == (200, "1")

    reports.states["2"] = reports.states["3"] = (READY, "")  # what is no version is not selected
    assert (await client.post(LOAD)).status_code == 200
    assert await reports.wanted() == ("1", "2", "3")


async def test_a_worker_without_models_is_not_ready_unless_operators_unloaded_them(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    await worker.registry.register(worker.info.model_copy(update={"models": ()}))
    answer = await client.get("/v2/health/ready")
    assert answer.status_code == 503
    assert "No worker serves a model" in answer.json()["error"]
    await client.post(UNLOAD)
    assert (await client.get("/v2/health/ready")).status_code == 200


async def test_a_read_that_started_before_a_load_ended_is_not_cached(
    app: FastAPI, client: httpx.AsyncClient, worker: FakeWorker, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = FASHION.model_copy(update={"version": "2"})
    await worker.registry.register(worker.info.model_copy(update={"models": (FASHION, second)}))
    reports.states["2"] = (READY, "")
    registry: Registry = app.state.services.registry
    models = registry.models
    reading, answered = asyncio.Event(), asyncio.Event()

    async def models_once_answered() -> list[ModelInfo]:
        reading.set()
        await answered.wait()
        return await models()

    monkeypatch.setattr(registry, "models", models_once_answered)
    early = asyncio.create_task(client.get("/v2/models/fashion/versions/2/ready"))
    await reading.wait()
    config = '{"version_policy": {"specific": {"versions": [1]}}}'
    assert (await client.post(LOAD, json={"parameters": {"config": config}})).status_code == 200
    answered.set()
    for answer in (await early, await client.get("/v2/models/fashion/versions/2/ready")):
        assert answer.status_code == 404
    assert await status(client, "fashion:2") == (404, "model_not_loaded")
    assert await status(client, "fashion") == (200, "1")


async def test_a_failed_load_changes_nothing(client: httpx.AsyncClient, reports: Reports) -> None:
    reports.states["2"] = (UNAVAILABLE, "its weights are damaged")
    answer = await client.post(LOAD)
    assert answer.status_code == 400
    assert answer.json() == {"error": "Failed to load fashion: version 2: its weights are damaged."}
    assert await reports.wanted() is None
    assert await status(client, "fashion") == (200, "1")


async def test_an_unload_supersedes_a_waiting_load(client: httpx.AsyncClient, reports: Reports) -> None:
    reports.states["2"] = (LOADING, "")
    loading = asyncio.create_task(client.post(LOAD))
    await until(reports.wanted, ("1", "2"))
    await client.post(UNLOAD)
    reports.states["2"] = (UNAVAILABLE, "not loaded")
    answer = await loading
    assert answer.status_code == 409
    assert "superseded" in answer.json()["error"]
    assert await reports.wanted() == ()


async def test_a_load_continues_after_its_timeout(
    settings: ServerSettings, worker: FakeWorker, reports: Reports
) -> None:
    reports.states["2"] = (LOADING, "")
    async with serving(settings.model_copy(update={"load_timeout_s": 0.5})) as app, client_of(app) as client:
        answer = await client.post(LOAD)
    assert answer.status_code == 504
    assert "Workers continue to load it" in answer.json()["error"]
    assert await reports.wanted() == ("1", "2")


async def test_a_load_without_reports_of_workers_is_refused(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_control, "REPORTS_WITHIN_S", 0.2)
    answer = await client.post(LOAD)
    assert answer.status_code == 503
    assert await status(client, "fashion") == (200, "1")


async def test_the_index_lists_loadable_versions(client: httpx.AsyncClient, reports: Reports) -> None:
    reports.states |= {"10": (UNAVAILABLE, "not loaded"), "2": (LOADING, "")}

    async def index(body: dict[str, Any] | None = None) -> list[tuple[str, str]]:
        return [(each["version"], each["state"]) for each in (await client.post(INDEX, json=body or {})).json()]

    await until(index, [("1", "READY"), ("2", "LOADING"), ("10", "UNAVAILABLE")])
    assert await index({"ready": True}) == [("1", "READY")]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (LOAD, {"parameters": {"file:1/model.onnx": "aGk="}}, "Unknown field"),
        (LOAD, {"parameters": {"config": {}}}, "Invalid config"),
        (LOAD, {"parameters": {"config": '{"version_policy": {"all": {}, "latest": {}}}'}}, "exactly one of"),
        (LOAD, {"parameters": {"config": '{"version_policy": {"latest": {"num_versions": 0}}}'}}, "from 1"),
        (UNLOAD, {"parameters": {"force": True}}, "Unknown field"),
        (INDEX, {"ready": 1}, "Invalid ready"),
    ],
)
async def test_invalid_requests_are_explained(
    client: httpx.AsyncClient, reports: Reports, path: str, body: dict[str, Any], message: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert await reports.wanted() is None


async def test_only_admins_load_and_unload(settings: ServerSettings, worker: FakeWorker, tmp_path: Path) -> None:
    scopes = {"generate": new_key(), "admin": new_key()}
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(
            f'[[keys]]\nname = "{scope}"\nsha256 = "{digest(key)}"\nscopes = ["{scope}"]\n'
            for scope, key in scopes.items()
        )
    )
    infer = {"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", "data": [1]}]}
    async with (
        serving(settings.model_copy(update={"api_keys_file": file})) as app,
        client_of(app) as client,
    ):

        async def statuses(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, int, int]:
            """Return the statuses without a key, with scope generate, and with scope admin."""
            headers = [{}, *({"Authorization": f"Bearer {key}"} for key in scopes.values())]
            answers = [await client.request(method, path, json=body, headers=each) for each in headers]
            return answers[0].status_code, answers[1].status_code, answers[2].status_code

        for path in ("/v2", "/v2/models/fashion", "/v2/models/fashion/config", "/v2/models/fashion/versions/1/ready"):
            assert await statuses("GET", path) == (200, 200, 200), path
        assert await statuses("GET", "/v2/models/stats") == (401, 200, 403)
        assert await statuses("GET", "/v2/models/fashion/stats") == (401, 200, 403)
        assert await statuses("POST", "/v2/models/fashion/infer", infer) == (401, 200, 403)
        assert await statuses("POST", INDEX) == (401, 200, 200)
        assert await statuses("PUT", ALIAS, {"versions": {"1": 1}}) == (401, 403, 200)
        assert await statuses("DELETE", ALIAS) == (401, 403, 200)
        assert await statuses("POST", UNLOAD) == (401, 403, 200)


async def test_models_are_loaded_on_the_operations_port_only(
    settings: ServerSettings, client: httpx.AsyncClient
) -> None:
    app = create_app(settings.model_copy(update={"metrics_port": 1}))
    async with listening_to(app) as url, httpx.AsyncClient(base_url=url) as public:
        for path in (LOAD, UNLOAD):
            assert (await public.post(path)).status_code == 404
        assert (await public.delete(ALIAS)).status_code == 404
        assert (await public.post(INDEX)).status_code == 200


async def test_web_pages_cannot_unload_models(client: httpx.AsyncClient) -> None:
    answer = await client.post(UNLOAD, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert await status(client, "fashion") == (200, "1")
