"""`GET /v1/stats`."""

from __future__ import annotations

import httpx

from msf_scheduler.jobs import WorkerLoad
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker


async def test_load_of_the_workers(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    before = (await client.get("/v1/stats")).json()
    assert (before["images_per_s"], before["p99_ms"], before["workers"], before["slots"]) == (0, None, 1, 8)
    load = WorkerLoad(num_slots=8, num_slots_in_use=5, batch_fill=0.75, images_per_s=2.5, p50_ms=40, p99_ms=90)
    await worker.registry.heartbeat(worker.info.id, load)
    after = (await client.get("/v1/stats")).json()
    assert (after["slots_in_use"], after["batch_fill"], after["jobs_queued"]) == (5, 0.75, 0)
    assert (after["images_per_s"], after["p50_ms"], after["p99_ms"]) == (2.5, 40, 90)


async def test_queued_jobs_are_counted(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.claiming = False
    for seed in range(3):
        await client.post("/v1/jobs", json={"prompt": "bag", "seed": seed})
    assert (await client.get("/v1/stats")).json()["jobs_queued"] == 3


async def test_statistics_are_on_the_operations_port_only(settings: ServerSettings, worker: FakeWorker) -> None:
    async with serving(settings.model_copy(update={"metrics_port": 9100})) as app, client_of(app) as client:
        assert (await client.get("http://msf:80/v1/stats")).status_code == 404
        assert (await client.get("http://msf:9100/v1/stats")).status_code == 200
