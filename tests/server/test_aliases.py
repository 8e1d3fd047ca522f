"""Requests under an alias: bound to one version, split by weight, and the same at every server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from msf_cli.main import main
from msf_scheduler import aliases, errors
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving, until
from tests.server.fake_worker import FASHION, FakeWorker

IMAGES, ALIASES = "/v1/images/generations", "/v2/repository/aliases"
INFER = "/v2/models/fashion/infer"
CANARY = {"1": 0.7, "2": 0.3}


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[FakeWorker]:
    """Serve two versions of one model."""
    async with FakeWorker(redis_url, [FASHION, FASHION.model_copy(update={"version": "2"})]) as worker:
        yield worker


async def set_alias(client: httpx.AsyncClient, alias: str, versions: dict[str, float]) -> None:
    answer = await client.put(f"{ALIASES}/{alias}", json={"versions": versions})
    assert (answer.status_code, answer.content) == (200, b"")


async def version_of(client: httpx.AsyncClient, model: str | None = "fashion", **headers: str) -> str:
    answer = await client.post(IMAGES, json={"prompt": "bag", "model": model}, headers=headers)
    return str(answer.json().get("version") or answer.json()["error"]["code"])


async def test_an_alias_stands_for_its_version(client: httpx.AsyncClient) -> None:
    assert await version_of(client) == "2"
    await set_alias(client, "fashion:stable", {"1": 1})
    assert [await version_of(client, model) for model in ("fashion:stable", "fashion", None)] == ["1", "2", "2"]
    await set_alias(client, "fashion", {"1": 1})
    assert [await version_of(client, model) for model in ("fashion", None, "fashion:2")] == ["1", "1", "2"]
    job = (await client.post("/v1/jobs", json={"prompt": "bag", "model": "fashion:stable"})).json()
    assert job["spec"]["version"] == "1"
    assert (await client.delete(f"{ALIASES}/fashion")).status_code == 200
    assert await version_of(client) == "2"


async def test_a_canary_gets_its_share_by_request_and_by_idempotency_key(client: httpx.AsyncClient) -> None:
    await set_alias(client, "fashion", CANARY)

    async def versions_of_requests() -> list[str]:
        ids = (f"r{number}" for number in range(30))
        return await asyncio.gather(*(version_of(client, **{"X-Request-Id": request_id}) for request_id in ids))

    by_request = await versions_of_requests()
    assert by_request == await versions_of_requests()
    assert 0 < Counter(by_request)["2"] < Counter(by_request)["1"]
    by_key = {await version_of(client, **{"Idempotency-Key": "k"}) for _ in range(3)}
    assert len(by_key) == 1

    text = (await client.get("/metrics")).text
    counts = {
        version: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        for version in CANARY
        if line.startswith("msf_requests_total")
        and f'version="{version}"' in line
        and f'route="{IMAGES}"' in line
        and 'outcome="succeeded"' in line
    }
    assert counts == {version: 2 * Counter(by_request)[version] + 3 * (by_key == {version}) for version in CANARY}


async def test_the_images_of_one_inference_are_of_one_version(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    await set_alias(client, "fashion", {"1": 0.5, "2": 0.5})
    body = {"inputs": [{"name": "label", "shape": [4], "datatype": "INT32", "data": [1, 2, 3, 4]}]}
    answered = set()
    for number in range(8):
        worker.claimed.clear()
        answer = await client.post(INFER, json=body, headers={"X-Request-Id": f"r{number}"})
        versions = [claim.job.spec.version for claim in worker.claimed]
        assert versions == 4 * [answer.json()["model_version"]]
        answered |= {*versions}
    assert answered == {"1", "2"}


async def test_a_repeated_key_keeps_its_version_when_the_weights_change(client: httpx.AsyncClient) -> None:
    body = {"inputs": [{"name": "label", "shape": [2], "datatype": "INT32", "data": [1, 2]}]}
    for path, request, field in (
        (IMAGES, {"prompt": "bag", "model": "fashion"}, "version"),
        (INFER, body, "model_version"),
    ):
        await set_alias(client, "fashion", {"1": 1})
        answers = [(await client.post(path, json=request, headers={"Idempotency-Key": "mine"})).json()]
        await set_alias(client, "fashion", {"2": 1})
        answers.append((await client.post(path, json=request, headers={"Idempotency-Key": "mine"})).json())
        assert [answer[field] for answer in answers] == ["1", "1"]


async def test_aliases_are_listed_under_v1_and_v2(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/models")).json()["aliases"] == {}
    await set_alias(client, "fashion", CANARY)
    await set_alias(client, "fashion:next", {"2": 1})
    assert (await client.get("/v1/models")).json()["aliases"] == {"fashion": CANARY, "fashion:next": {"2": 1}}
    assert (await client.get("/v1/models/fashion:next")).json()["id"] == "fashion:2"
    assert (await client.get("/v1/models/fashion")).json()["id"] == "fashion:1"  # the heaviest
    config = (await client.get("/v2/models/fashion/config")).json()["parameters"]
    assert json.loads(config["aliases"]["string_value"]) == {"fashion": CANARY, "fashion:next": {"2": 1}}
    for path in ("/v2/models/fashion:next", "/v2/models/fashion/versions/next"):
        assert (await client.get(f"{path}/ready")).status_code == 200
        body = {"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", "data": [1]}]}
        assert (await client.post(f"{path}/infer", json=body)).json()["model_version"] == "2"


async def test_another_server_follows(settings: ServerSettings, client: httpx.AsyncClient) -> None:
    async with serving(settings) as other_app, client_of(other_app) as other:
        assert await version_of(other) == "2"
        await set_alias(client, "fashion", {"1": 1})
        assert (await other.get("/v1/models")).json()["aliases"] == {"fashion": {"1": 1}}  # at once
        await until(lambda: version_of(other), "1")


async def test_a_version_that_is_gone_leaves_its_share_to_the_others(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    await set_alias(client, "fashion", {"1": 0.01, "2": 0.99})
    await set_alias(client, "fashion:next", {"2": 1})
    control = client._transport.app.state.services.model_control  # type: ignore[attr-defined]
    await control.set_versions("fashion", ["1"])
    await client.get("/v1/models")
    assert [await version_of(client) for _ in range(3)] == ["1", "1", "1"]
    assert await version_of(client, "fashion:next") == "model_not_loaded"


@pytest.mark.parametrize(
    ("alias", "body", "status", "message"),
    [
        ("fashion", {"versions": {"1": 0.5, "3": 0.5}}, 404, 'Unknown version "3" of alias fashion. Allowed: 1, 2.'),
        ("hats:stable", {"versions": {"1": 1}}, 404, 'Unknown model "hats". Allowed: fashion.'),
        ("fashion", {"versions": {"1": 0.5}}, 400, "The weights of alias fashion sum to 0.5. Allowed: a sum of 1."),
        ("fashion", '{"versions": {"1": NaN}}', 400, "Invalid weight of version 1 of alias fashion: nan."),
        ("fashion", {"versions": {"1": True}}, 400, "Invalid versions"),
        ("fashion", {"versions": {}}, 400, "Invalid versions"),
        ("fashion", {"version": {"1": 1}}, 400, "versions is missing"),
        ("fashion:7", {"versions": {"1": 1}}, 400, 'Invalid alias "fashion:7"'),
        ("x" * 5000, {"versions": {"1": 1}}, 404, f'Unknown model "{"x" * 77}...".'),
        ("fashion", {"versions": {"1" * 5000: 1}}, 404, f'Unknown version "{"1" * 77}..." of alias fashion.'),
    ],
)
async def test_a_bad_alias_is_refused_and_harms_nothing(
    client: httpx.AsyncClient, alias: str, body: Any, status: int, message: str
) -> None:
    await set_alias(client, "fashion", {"1": 1})
    content = body if isinstance(body, str) else json.dumps(body)
    answer = await client.put(f"{ALIASES}/{alias}", content=content)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert (await client.get("/v1/models")).json()["aliases"] == {"fashion": {"1": 1}}
    assert await version_of(client) == "1"


async def test_an_unknown_alias_is_refused_with_the_names_that_exist(client: httpx.AsyncClient) -> None:
    await set_alias(client, "fashion:stable", {"1": 1})
    answer = await client.post(IMAGES, json={"prompt": "bag", "model": "fashion:stabel"})
    assert answer.status_code == 404
    assert "Allowed: fashion:1, fashion:2, fashion:stable." in answer.json()["error"]["message"]
    assert (await client.delete(f"{ALIASES}/fashion")).status_code == 404


async def test_aliases_are_limited_and_a_message_lists_some_of_them(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "MAX_ALIASES", 3)
    monkeypatch.setattr(errors, "MAX_LISTED", 2)
    for tag in ("a", "b", "c"):
        await set_alias(client, f"fashion:{tag}", {"1": 1})
    answer = await client.put(f"{ALIASES}/fashion:d", json={"versions": {"1": 1}})
    assert (answer.status_code, answer.json()["error"]) == (400, "Too many aliases: 3. Allowed: 3; delete some first.")
    await set_alias(client, "fashion:c", {"2": 1})
    answer = await client.delete(f"{ALIASES}/{'x' * 5000}")
    allowed = "fashion:a, fashion:b and 1 others"
    assert answer.json()["error"] == f'Unknown alias "{"x" * 77}...". Allowed: {allowed}.'
    answer = await client.post(IMAGES, json={"prompt": "bag", "model": "hats"})
    assert "Allowed: fashion:1, fashion:2 and 3 others." in answer.json()["error"]["message"]


async def test_pages_of_other_origins_set_no_alias(client: httpx.AsyncClient) -> None:
    for method in ("PUT", "DELETE"):
        answer = await client.request(method, f"{ALIASES}/fashion", headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403


async def test_operators_set_aliases_from_the_shell(redis_url: str, client: httpx.AsyncClient) -> None:
    async def alias(*arguments: str) -> tuple[int, str]:
        runner = CliRunner(env={"MSF_REDIS_URL": redis_url})
        result = await asyncio.to_thread(runner.invoke, main, ["models", "alias", *arguments])
        return result.exit_code, result.output

    assert await alias() == (0, "")
    assert await alias("fashion:stable", "1") == (0, "fashion:stable  1=1\n")
    assert await alias("fashion", "1=0.9", "2=0.1") == (0, "fashion  1=0.9 2=0.1\nfashion:stable  1=1\n")
    await until(lambda: version_of(client, "fashion:stable"), "1")
    assert await alias("fashion", "1=0.9") == (
        1,
        "Error: The weights of alias fashion sum to 0.9. Allowed: a sum of 1.\n",
    )
    assert await alias("fashion", "1=nan", "2=1") == (
        1,
        "Error: Invalid weight of version 1 of alias fashion: nan. Allowed: 0 to 1.\n",
    )
    assert await alias("fashion", "--delete") == (0, "fashion:stable  1=1\n")
    for arguments, message in {
        ("fashion",): "Missing versions of fashion.",
        ("fashion", "1=x", "2=1"): "Invalid weight in '1=x'.",
        ("fashion", "1=0.5", "1=0.5"): "A version occurs twice.",
        ("--delete",): "--delete needs NAME",
    }.items():
        status, output = await alias(*arguments)
        assert status == 2
        assert message in output
