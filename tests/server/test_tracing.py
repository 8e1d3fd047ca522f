"""Spans from the caller through the server and the queue into the worker."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from msf_scheduler.tracing import Tracing
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of
from tests.server.fake_worker import FakeWorker

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


async def test_the_trace_continues_in_the_job(
    settings: ServerSettings, worker: FakeWorker, spans: InMemorySpanExporter
) -> None:
    tracing = Tracing("msf-server", "http://unused", SimpleSpanProcessor(spans))
    app = create_app(settings, tracing)
    async with app.router.lifespan_context(app), client_of(app) as client:
        body = {"prompt": "bag"}
        answer = await client.post("/v1/images/generations", json=body, headers={"traceparent": CALLER})
        await client.get("/v2/health/live")
        await client.get("/docs?signature=secret")
    [span] = spans.get_finished_spans()
    assert span.name == "POST /v1/images/generations"
    assert format_trace_id(span.context.trace_id) == CALLER.split("-")[1]
    assert span.parent is not None
    assert format_span_id(span.parent.span_id) == CALLER.split("-")[2]
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["http.request.method"] == "POST"
    assert span.attributes["url.path"] == "/v1/images/generations"
    assert span.attributes["http.route"] == "/v1/images/generations"
    assert span.attributes["msf.job_id"] == span.attributes["gen_ai.response.id"] == answer.json()["job_id"]
    assert span.attributes["gen_ai.output.type"] == "image"
    assert span.attributes["gen_ai.request.model"] == "fashion"
    passed_on = worker.claimed[0].job.terms.traceparent
    assert passed_on is not None
    assert passed_on.split("-")[1:3] == [CALLER.split("-")[1], format_span_id(span.context.span_id)]


async def test_signatures_of_urls_are_not_traced(settings: ServerSettings, spans: InMemorySpanExporter) -> None:
    app = create_app(settings, Tracing("msf-server", "http://unused", SimpleSpanProcessor(spans)))
    async with app.router.lifespan_context(app), client_of(app) as client:
        await client.get("/v1/files/x/0.png?expires=1&signature=secret")
    [span] = spans.get_finished_spans()
    assert span.name == "GET /v1/files/{job_id}/{name}"
    assert span.attributes is not None
    assert "secret" not in str(dict(span.attributes))
