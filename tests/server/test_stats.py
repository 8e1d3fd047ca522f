"""The service at a glance."""

from __future__ import annotations

import httpx

from msf_serve.scheduler.jobs import WorkerLoad
from msf_serve.server.recent import Recent
from msf_serve.server.settings import ServerSettings
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker


async def test_the_last_minute_and_the_workers_now(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    before = (await client.get("/v1/stats")).json()
    assert (before["requests_per_s"], before["p99_ms"], before["workers"], before["slots"]) == (0, None, 1, 8)
    await client.post("/v1/images/generations", json={"prompt": "bag", "n": 3})
    load = WorkerLoad(num_slots=8, num_slots_in_use=5, batch_fill=0.75)
    await worker.registry.heartbeat(worker.info.id, load)
    after = (await client.get("/v1/stats")).json()
    assert after["requests_per_s"] * after["window_s"] == 1
    assert after["images_per_s"] * after["window_s"] == 3
    assert 0 < after["p50_ms"] <= after["p99_ms"]
    assert (after["slots_in_use"], after["batch_fill"], after["jobs_queued"]) == (5, 0.75, 0)


async def test_jobs_that_wait_and_run(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.claiming = False
    for seed in range(3):
        await client.post("/v1/jobs", json={"prompt": "bag", "seed": seed})
    assert (await client.get("/v1/stats")).json()["jobs_queued"] == 3


async def test_it_is_the_operators_where_they_have_a_port(settings: ServerSettings, worker: FakeWorker) -> None:
    async with serving(settings.model_copy(update={"operations_port": 9100})) as app, client_of(app) as client:
        assert (await client.get("http://msf:80/v1/stats")).status_code == 404
        assert (await client.get("http://msf:9100/v1/stats")).status_code == 200


def test_what_is_older_than_the_window_is_forgotten() -> None:
    now = 0.0
    recent = Recent(60.0, clock=lambda: now)
    for now in range(100):
        recent.add_request(float(now))
        recent.add_images(2)
    window = recent.now()
    assert (window.num_requests, window.num_images) == (61, 122)
    assert window.quantile_ms(0.5) == 69_000
    assert window.quantile_ms(0.99) == 99_000
