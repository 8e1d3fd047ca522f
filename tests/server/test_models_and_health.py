"""`/v1/models`, health checks and metrics."""

from __future__ import annotations

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from msf_scheduler.jobs import JobError
from tests.server.conftest import client_of
from tests.server.fake_worker import LABELS, FakeWorker

PATH = "/v1/images/generations"


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """/metrics as a Prometheus server reads it, by name and labels."""
    response = await client.get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def of_model(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset({"model": "fashion", "version": "1", **labels}.items())


async def test_models_describe_their_limits(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert model == {
        "id": "fashion:1",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "msf-serve",
        "name": "fashion",
        "version": "1",
        "served": True,
        "reason": "",
        "description": "Drawings of clothes.",
        "labels": list(LABELS),
        "image_size": 32,
        "image_channels": 1,
        "default_num_steps": 12,
        "min_num_steps": 2,
        "max_num_steps": 100,
        "num_steps_by_quality": {
            **{"auto": 12, "standard": 12, "low": 6, "medium": 12, "high": 24, "hd": 24, "xhigh": 36, "max": 48}
        },
        "default_guidance_scale": 2.0,
        "max_guidance_scale": 10.0,
        "takes_negative": True,
        "teacher": None,
        "max_n": 64,
        "fingerprint": "drawing",
        "strict_cost": 0.0,
    }
    for name in ("fashion", "fashion:1"):
        assert (await client.get(f"/v1/models/{name}")).json() == model


async def test_an_unknown_model_is_not_found(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/models/vehicles")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "fashion:1" in response.json()["error"]["message"]


async def test_ready_while_a_worker_is_alive(app: FastAPI, worker: FakeWorker) -> None:
    async with client_of(app) as client:
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        await worker.registry.unregister(worker.info.id)
        response = await client.get("/v2/health/ready")
        assert response.status_code == 503
        assert response.json() == {"ready": False, "error": "No live worker is registered."}


async def test_metrics_count_each_request_once_by_outcome(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    await client.post(PATH, json={"prompt": "bag", "n": 3})
    await client.post(PATH, json={"prompt": "bag", "n": 65})
    await client.post(PATH, content=b"{")
    worker.failure = JobError(code="non_finite", message="sample 0 is not finite")
    await client.post(PATH, json={"prompt": "bag"})
    metrics = await samples(client)
    nameless = frozenset({"model": "", "version": "", "route": PATH, "outcome": "invalid"}.items())
    for labels in (
        *(of_model(route=PATH, outcome=outcome) for outcome in ("succeeded", "invalid", "failed")),
        nameless,
    ):
        assert metrics["msf_requests_total", labels] == 1
        assert metrics["msf_request_seconds_count", labels] == 1
    assert metrics["msf_images_total", of_model(source="made")] == 3
    assert metrics["msf_redis_round_trip_seconds_count", frozenset({("call", "admit")})] == 2


async def test_cached_images_are_counted_separately(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await client.post(PATH, json={"prompt": "bag", "n": 2, "seed": 1, "num_steps": 10})
    metrics = await samples(client)
    assert metrics["msf_images_total", of_model(source="made")] == 2
    assert metrics["msf_images_total", of_model(source="cached")] == 4
    assert metrics["msf_steps_demanded_total", of_model()] == 2 * (10 + 1)


async def test_jobs_are_counted_by_route_not_by_id(client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/jobs", json={"prompt": "bag"})).json()
    await client.get(f"/v1/jobs/{job['id']}")
    await client.get("/v1/jobs/none")
    metrics = await samples(client)
    nameless = {"model": "", "version": "", "route": "/v1/jobs/{job_id}"}
    assert metrics["msf_requests_total", of_model(route="/v1/jobs", outcome="succeeded")] == 1
    assert metrics["msf_requests_total", frozenset({**nameless, "outcome": "succeeded"}.items())] == 1
    assert metrics["msf_requests_total", frozenset({**nameless, "outcome": "invalid"}.items())] == 1


async def test_metrics_show_the_queue(app: FastAPI, client: httpx.AsyncClient) -> None:
    metrics = await samples(client)
    assert metrics["msf_redis_up", frozenset()] == 1
    for gauge in ("msf_jobs_queued", "msf_jobs_running", "msf_samples", "msf_steps_queued", "msf_queue_oldest_seconds"):
        assert metrics[gauge, of_model()] == 0
    assert metrics["msf_workers", frozenset()] == 1
    assert metrics["msf_redis_memory_bytes", frozenset()] > 0
    assert metrics["msf_redis_aof_ok", frozenset()] == 1


async def test_callers_cannot_make_labels(client: httpx.AsyncClient) -> None:
    for name in ("vehicles", "planes"):
        await client.post(PATH, json={"prompt": "bag", "model": name})
    assert not any("vehicles" in dict(labels).values() for _, labels in await samples(client))
