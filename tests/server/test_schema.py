"""Generated requests against the OpenAPI document (schemathesis, all of its checks)."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS as REGISTERED
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.jobs import MAX_INDEX, MAX_SEED
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.server.conftest import listening
from tests.server.fake_worker import FASHION, LABELS, FakeWorker

# A deadline of an invalid request, which is its own, may be answered 504.
load_all_checks()
CHECKS: list[Any] = [check for check in REGISTERED.get_all() if check is not not_a_server_error]
ANSWER_WITHIN_S = 20.0
MAX_IMAGES = ServerSettings.model_fields["max_images_per_request"].default


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server and its worker in a thread, because schemathesis is synchronous."""
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as valkey:
        yield from _serving(valkey.url)


def _serving(redis_url: str) -> Iterator[str]:
    started, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(FakeWorker(redis_url))
            server = ServerSettings(redis_url=redis_url, port=0, request_timeout_s=10, load_timeout_s=0.1)
            urls.append(await stack.enter_async_context(listening(server)))
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(60)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def _document() -> dict[str, Any]:
    return create_app(ServerSettings(redis_url="redis://nowhere")).openapi()


def _within_limits() -> dict[str, Any]:
    """Return the document with what depends on the model, as `GET /v1/models` tells it, and on other fields.

    What it then allows must be accepted. Fields that are valid with others only are left out.
    """
    document = _document()
    alias = document["paths"]["/v2/repository/aliases/{alias}"]
    for operation in alias.values():
        operation["parameters"][0]["schema"] = {"enum": [FASHION.name, f"{FASHION.name}:stable"]}
    load = document["paths"]["/v2/repository/models/{model}/load"]["post"]["requestBody"]["content"]["application/json"]
    load["schema"]["properties"]["parameters"]["properties"]["config"] = {
        "enum": ["{}", '{"version_policy": {"all": {}}}']
    }
    body = alias["put"]["requestBody"]["content"]["application/json"]["schema"]
    body["properties"]["versions"] = {"const": {FASHION.version: 1}}
    fields = document["components"]["schemas"]["ImageRequest"]["properties"]
    for name in (
        "model",
        "stream",
        "timeout_s",
        "negative_prompt",
        "num_inference_steps",
        "true_cfg_scale",
        "cfg_scale",
        "webhook_url",
    ):
        del fields[name]
    limits = {
        "label": {"type": "integer", "minimum": 0, "maximum": len(LABELS) - 1},
        "n": {
            "type": "integer",
            "minimum": 1,
            "maximum": ServerSettings.model_fields["max_images_per_request"].default,
        },
        "num_steps": {"type": "integer", "minimum": 2, "maximum": FASHION.max_num_steps},
        "guidance_scale": {"type": "number", "minimum": 0, "maximum": FASHION.max_guidance_scale},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
        "first_index": {"type": "integer", "minimum": 0, "maximum": MAX_INDEX},
    }
    limits["negative_label"] = limits["label"]
    fields |= {name: limits[name] for name in ("n", "num_steps", "guidance_scale")}
    fields["prompt"] = {"enum": [*LABELS, *range(len(LABELS))]}
    for path, operations in document["paths"].items():
        if path.endswith("/infer"):
            schema = operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            tensors = [_of_one_image(tensor, limits) for tensor in schema["properties"]["inputs"]["items"]["anyOf"]]
            del schema["properties"]["parameters"]["properties"]["timeout"]
            schema["properties"]["inputs"] = {
                "type": "array",
                "prefixItems": [
                    {"anyOf": [tensor for tensor in tensors if tensor["properties"]["name"]["const"] == name]}
                    for name in ("label", "seed", "num_steps", "guidance_scale")
                ],
                "items": False,
                "minItems": 1,
            }
    return document


def _of_one_image(tensor: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    fields = tensor["properties"]
    is_text = fields["datatype"]["enum"] == ["BYTES"]
    element = {"enum": list(LABELS)} if is_text else limits[fields["name"]["const"]]
    data = {"type": "array", "items": element, "minItems": 1, "maxItems": 1}
    return tensor | {"properties": fields | {"shape": {"enum": [[1], [1, 1]]}, "data": data}}


def _operations(document: dict[str, Any]) -> dict[str, Any]:
    results = schemathesis.openapi.from_dict(document).get_all_operations()
    return {result.ok().label: result.ok() for result in results if isinstance(result, Ok)}


API = schemathesis.openapi.from_dict(_document())
VALID, INVALID = _operations(_within_limits()), _operations(_document())


@pytest.mark.parametrize("label", VALID)
def test_every_answer_to_valid_requests_is_as_documented(url: str, label: str) -> None:
    _ask(url, VALID[label], GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", [label for label, operation in INVALID.items() if operation.body or operation.query])
def test_invalid_requests_are_refused(url: str, label: str) -> None:
    _ask(url, INVALID[label], GenerationMode.NEGATIVE)


def _ask(url: str, operation: Any, mode: GenerationMode) -> None:
    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        answer = case.call_and_validate(
            base_url=url, checks=CHECKS, excluded_checks=[not_a_server_error], timeout=ANSWER_WITHIN_S
        )
        assert answer.status_code < 500 or answer.status_code == 504, answer.text

    ask()


@pytest.mark.parametrize("requires_keys", [False, True])
def test_keys_are_declared_where_they_are_required(requires_keys: bool, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n')
    app = create_app(ServerSettings(redis_url="redis://nowhere", api_keys_file=file if requires_keys else None))
    document = app.openapi()
    secured = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if operation.get("security", document.get("security"))
    }
    assert ("/v1/jobs" in secured) == ("securitySchemes" in document["components"]) == requires_keys
    assert "/v1/models" not in secured


def test_operations_have_ids_of_their_own_and_known_tags() -> None:
    document = _document()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z]+([A-Z][a-z]+)*", name) for name in ids), "SDKs make method names of them"
    assert {tag for operation in operations for tag in operation["tags"]} == {tag["name"] for tag in document["tags"]}


def test_streams_and_webhooks_have_schemas() -> None:
    document = _document()
    schemas = document["components"]["schemas"]
    streams = {
        path: content["text/event-stream"]["schema"]["$ref"].rpartition("/")[2]
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if "text/event-stream" in (content := operation["responses"].get("200", {}).get("content", {}))
    }
    assert streams == {"/v1/images/generations": "ImageStreamEvent", "/v1/jobs/{job_id}/events": "JobEvent"}
    members = {each["$ref"].rpartition("/")[2] for name in streams.values() for each in schemas[name]["anyOf"]}
    assert members <= schemas.keys()
    message = document["webhooks"]["job-ended"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert message["$ref"].rpartition("/")[2] == "WebhookEvent"
    assert "job.succeeded" in schemas["WebhookEvent"]["properties"]["type"]["enum"]


def test_fields_and_parameters_of_v1_are_described() -> None:
    """Every field of a request, of an image answer, of a job, a model and an error; every path and query parameter."""
    schema = _document()
    for name in ("ImageRequest", "ImagesResponse", "JobObject", "ModelObject", "ErrorDetail"):
        for field, about in schema["components"]["schemas"][name]["properties"].items():
            is_described = "description" in about or "const" in about or "$ref" in about or field == "owned_by"
            assert is_described, f"{name}.{field}"
    for path, operations in schema["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            for parameter in operation.get("parameters", []):
                assert "description" in parameter, f"{method} {path}: {parameter['name']}"
