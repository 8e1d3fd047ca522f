"""Observability of a request: its line in the log, its exemplar, and the use of its key."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from msf_scheduler.process_metrics import BoundedLabel
from msf_scheduler.tracing import Tracing, default_endpoint, trace_id_of
from msf_server.api_keys import digest
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving, until
from tests.server.fake_worker import FakeWorker
from tests.server.test_events import claim_of, show
from tests.server.test_models_and_health import of_model, samples

PATH = "/v1/images/generations"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
STUDIO = {"Authorization": "Bearer msf_studio"}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(f'[[keys]]\nname = "studio"\nsha256 = "{digest("msf_studio")}"\n')
    return path


async def test_exemplars_lead_from_openmetrics_to_the_trace(settings: ServerSettings, worker: FakeWorker) -> None:
    app = create_app(settings, Tracing("msf-server", "http://unused", SimpleSpanProcessor(InMemorySpanExporter())))
    async with app.router.lifespan_context(app), client_of(app) as client:
        for flags in ("01", "00"):  # sampled, and not
            trace_id = TRACE_ID if flags == "01" else TRACE_ID[::-1]
            headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-{flags}"}
            await client.post(PATH, json={"prompt": "bag"}, headers=headers)
        metrics = await client.get("/metrics", headers=OPENMETRICS)
        plain = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("application/openmetrics-text")
    [line] = [line for line in metrics.text.splitlines() if "trace_id" in line]
    assert line.startswith("msf_request_seconds_bucket{")
    assert f'# {{trace_id="{TRACE_ID}"}}' in line
    assert metrics.text.endswith("# EOF\n")
    assert plain.headers["content-type"].startswith("text/plain")
    assert "trace_id" not in plain.text


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [
        (f"00-{TRACE_ID}-b7ad6b7169203331-01", TRACE_ID),
        (f"00-{TRACE_ID}-b7ad6b7169203331-00", None),
        ("?", None),
        (None, None),
    ],
)
def test_only_sampled_traces_have_an_id_to_look_up(traceparent: str | None, trace_id: str | None) -> None:
    assert trace_id_of(traceparent) == trace_id


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "http://collector:4318"),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces/v1/traces",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://all",
            },
            "http://traces/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_opentelemetrys_variables_name_the_endpoint(
    variables: dict[str, str], endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_endpoint() == endpoint
    assert ServerSettings(redis_url="redis://unused").otlp_endpoint == endpoint


def test_opentelemetrys_variables_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tracing("msf-server", "http://unused").provider.resource.attributes["service.name"] == "msf-server"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    attributes = Tracing("msf-server", "http://unused").provider.resource.attributes
    assert attributes["service.name"] == "pictures"
    assert attributes["deployment.environment.name"] == "staging"


async def test_a_line_of_the_log_describes_a_request(
    settings: ServerSettings, keys_file: Path, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    body = {"prompt": "bag", "n": 2, "num_steps": 8}
    async with serving(settings.model_copy(update={"api_keys_file": keys_file})) as app, client_of(app) as client:
        answer = await client.post(PATH, json=body, headers={**STUDIO, "x-request-id": "req-1"})
        await client.post(PATH, json={"prompt": "no such class"}, headers={**STUDIO, "x-request-id": "req-2"})
        await client.post(PATH, json=body, headers={"x-request-id": "req-3"})
    success, invalid, denied = [record for record in caplog.records if record.name.endswith("request_id")]
    duration_ms = success.__dict__["duration_ms"]
    assert success.message == (
        f"POST {PATH} 200 in {duration_ms} ms: fashion:1, 2 x 8 steps, queued 4.0 ms, key studio, "
        f"job {answer.json()['job_id']}, request req-1"
    )
    fields = {"model": "fashion:1", "num_images": 2, "num_steps": 8, "queue_ms": 4.0, "key": "studio", "status": 200}
    assert fields.items() <= success.__dict__.items()
    assert invalid.message.split(" ms: ")[1] == "unknown_class, fashion:1, key studio, request req-2"
    assert denied.message.split(" ms: ")[1] == "invalid_api_key, request req-3"


async def test_use_is_counted_by_key_and_by_size(settings: ServerSettings, keys_file: Path, worker: FakeWorker) -> None:
    async with serving(settings.model_copy(update={"api_keys_file": keys_file})) as app, client_of(app) as client:
        for num_images in (1, 3):
            body = {"prompt": "bag", "n": num_images, "num_steps": 10}
            (await client.post(PATH, json=body, headers=STUDIO)).raise_for_status()
        await client.post(PATH, json={"prompt": "no such class"}, headers=STUDIO)
        metrics = await samples(client)
    studio = frozenset({("key", "studio")})
    assert metrics["msf_key_samples_total", studio] == 4
    assert metrics["msf_key_sample_steps_total", studio] == 4 * 11
    assert metrics["msf_key_requests_total", studio | {("outcome", "succeeded")}] == 2
    assert metrics["msf_key_requests_total", studio | {("outcome", "invalid")}] == 1
    assert metrics["msf_job_samples_sum", of_model()] == 4
    assert metrics["msf_job_steps_sum", of_model()] == 2 * 10


def test_a_label_has_a_bounded_number_of_values() -> None:
    label = BoundedLabel(2)
    assert [label.of(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


async def test_time_to_the_first_preview(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    async with httpx.AsyncClient(base_url=live_url, timeout=20) as client:
        body = {"prompt": "bag", "stream": True, "partial_images": 2}
        answer = asyncio.create_task(client.post(PATH, json=body))
        await until(lambda: bool(worker.claimed))
        claim = await claim_of(worker, worker.claimed[0].job.id)
        for number in range(2):
            await show(worker, claim, number + 1, 0, number)
        worker.holding = False
        frames = (await answer).text
        metrics = await samples(client)
    assert [json.loads(line[6:])["type"] for line in frames.splitlines() if line.startswith("data: {")] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert metrics["msf_first_preview_seconds_count", of_model()] == 1
    assert metrics["msf_steps_queued", of_model()] == 0
