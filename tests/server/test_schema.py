"""Generated requests against the OpenAPI schema (schemathesis)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.server.conftest import listening
from tests.server.fake_worker import FakeWorker

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
ANSWER_WITHIN_S = 20.0


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


API = schemathesis.openapi.from_dict(create_app(ServerSettings(redis_url="redis://nowhere")).openapi())
OPERATIONS = {result.ok().label: result.ok() for result in API.get_all_operations() if isinstance(result, Ok)}


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_answer_is_as_documented(url: str, label: str) -> None:
    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=OPERATIONS[label].as_strategy())
    def ask(case: schemathesis.Case[Any]) -> None:
        answer = case.call_and_validate(base_url=url, checks=CHECKS, timeout=ANSWER_WITHIN_S)
        assert answer.status_code < 500 or answer.status_code == 504, answer.text  # a deadline is the caller's own

    ask()


def test_fields_and_parameters_of_v1_are_described() -> None:
    """Every field of a request, of an image answer, of a job, a model and an error; every path and query parameter."""
    schema = create_app(ServerSettings(redis_url="redis://nowhere")).openapi()
    for name in ("ImageRequest", "ImagesResponse", "JobObject", "ModelObject", "ErrorDetail"):
        for field, about in schema["components"]["schemas"][name]["properties"].items():
            is_described = "description" in about or "const" in about or "$ref" in about or field == "owned_by"
            assert is_described, f"{name}.{field}"
    for path, operations in schema["paths"].items():
        for method, operation in operations.items() if path.startswith("/v1/") else ():
            for parameter in operation.get("parameters", []):
                assert "description" in parameter, f"{method} {path}: {parameter['name']}"
