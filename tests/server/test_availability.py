"""A full queue, draining, outages, timeouts, failures and disconnects each end with a clear answer."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from msf_scheduler.connection import connect
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import JobError, JobRecord
from msf_scheduler.queue import JobQueue
from msf_scheduler.reply_reader import ReplyReader
from msf_server.dependencies import Services
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, listening, serving, until
from tests.server.fake_worker import FASHION, FakeWorker

PATH = "/v1/images/generations"
BAG = {"prompt": "bag"}


async def status(client: httpx.AsyncClient) -> int:
    return (await client.post(PATH, json=BAG)).status_code


async def num_jobs_queued(queue: JobQueue) -> int:
    return (await queue.depth(FASHION.name, FASHION.version)).num_jobs_queued


async def test_a_full_queue_refuses_with_retry_after(settings: ServerSettings, worker: FakeWorker) -> None:
    worker.holding = True
    small = settings.model_copy(update={"max_queued_samples": 64})
    async with serving(small) as app, client_of(app) as client:
        accepted = asyncio.create_task(client.post(PATH, json={**BAG, "n": 60}))
        await until(lambda: len(worker.claimed) == 1)
        response = await client.post(PATH, json={**BAG, "n": 5})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        worker.holding = False
        assert (await accepted).status_code == 200
        assert (await client.post(PATH, json={**BAG, "n": 5})).status_code == 200


async def test_a_failed_job_reports_its_code(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.failure = JobError(code="non_finite", message="sample 0 is not finite")
    response = await client.post(PATH, json=BAG)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "non_finite"
    assert "sample 0 is not finite" in response.json()["error"]["message"]


async def test_a_job_cancelled_by_another_client_ends_the_wait(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    waiting = asyncio.create_task(client.post(PATH, json=BAG))
    await until(lambda: len(worker.claimed) == 1)
    await worker.queue.cancel(worker.claimed[0].job.id)
    response = await waiting
    assert response.status_code == 499
    assert response.json()["error"]["code"] == "cancelled"


async def test_a_job_that_takes_too_long_is_cancelled(settings: ServerSettings, worker: FakeWorker) -> None:
    worker.holding = True
    async with serving(settings.model_copy(update={"request_timeout_s": 0.2})) as app, client_of(app) as client:
        response = await client.post(PATH, json=BAG)
    assert response.status_code == 504
    assert response.headers["x-should-retry"] == "false"
    await until(lambda: {claim.job.id for claim in worker.claimed} == worker.lost != set())


async def test_a_disconnect_cancels_the_running_job(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    async with httpx.AsyncClient(base_url=live_url) as client:
        abandoned = asyncio.create_task(client.post(PATH, json={**BAG, "n": 8}))
        await until(lambda: len(worker.claimed) == 1)
        abandoned.cancel()
        await until(lambda: worker.claimed[0].job.id in worker.lost)
        worker.holding = False
        assert (await client.post(PATH, json=BAG)).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert 'msf_clients_gone_total{model="fashion",version="1"} 1.0' in metrics


async def test_a_disconnect_cancels_the_queued_job(settings: ServerSettings, redis_url: str) -> None:
    async with FakeWorker(redis_url):
        pass  # its model stays known
    async with (
        listening(settings) as url,
        httpx.AsyncClient(base_url=url) as client,
        connect(redis_url) as redis,
    ):
        queue = JobQueue(redis)
        abandoned = asyncio.create_task(client.post(PATH, json=BAG))
        await until(lambda: num_jobs_queued(queue), 1)
        abandoned.cancel()
        await until(lambda: num_jobs_queued(queue), 0)


async def test_without_any_registered_worker_requests_are_refused(app: FastAPI) -> None:
    async with client_of(app) as client:
        response = await client.post(PATH, json=BAG)
    assert response.status_code == 503
    assert response.headers["retry-after"]
    assert response.json()["error"]["code"] == "no_worker"


async def test_requests_are_refused_after_a_long_absence_of_workers(
    settings: ServerSettings, worker: FakeWorker
) -> None:
    async with serving(settings.model_copy(update={"worker_absence_s": 0.01})) as app, client_of(app) as client:
        assert (await client.get("/v1/models")).json()["data"]
        await worker.registry.unregister(worker.info.id)
        await until(lambda: status(client), 503)
        assert (await client.post(PATH, json=BAG)).json()["error"]["code"] == "no_worker"
        assert [model["served"] for model in (await client.get("/v1/models")).json()["data"]] == [False]


async def test_a_rolled_back_version_is_not_chosen(
    settings: ServerSettings, redis_url: str, worker: FakeWorker
) -> None:
    newer = FASHION.model_copy(update={"version": "2"})
    async with FakeWorker(redis_url, [newer]) as other:
        other_info = other.info.model_copy(update={"id": "other"})
        await other.registry.register(other_info)
        async with serving(settings) as app, client_of(app) as client:
            assert (await client.get("/v1/models/fashion")).json()["version"] == "2"
        await other.registry.unregister("other")
    await worker.registry.register(worker.info)
    async with serving(settings) as app, client_of(app) as client:
        assert (await client.get("/v1/models/fashion")).json()["version"] == "1"
        assert (await client.post(PATH, json=BAG)).json()["version"] == "1"
        assert (await client.post(PATH, json={**BAG, "model": "fashion:2"})).status_code == 503


async def test_draining_refuses_new_work_and_answers_accepted_work(
    app: FastAPI, client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    services: Services = app.state.services
    worker.holding = True
    accepted = asyncio.create_task(client.post(PATH, json=BAG))
    await until(lambda: len(worker.claimed) == 1)
    services.drain.begin()
    response = await client.post(PATH, json=BAG)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"
    assert (await client.get("/v2/health/ready")).status_code == 503
    assert (await client.get("/v2/health/live")).status_code == 200
    worker.holding = False
    assert (await accepted).status_code == 200


async def test_requests_are_refused_during_an_outage_of_redis(stoppable_valkey: EmbeddedValkey) -> None:
    settings = ServerSettings(redis_url=stoppable_valkey.url)
    async with serving(settings) as app, client_of(app) as client:
        async with FakeWorker(stoppable_valkey.url):
            assert (await client.post(PATH, json=BAG)).status_code == 200
        stoppable_valkey.stop()

        response = await client.post(PATH, json=BAG)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert response.json()["error"]["code"] == "queue_unavailable"
        ready = await client.get("/v2/health/ready")
        assert ready.status_code == 503
        for answer in (response, ready, await client.get("/v2"), await client.get("/v1/models")):
            assert not any(word in answer.text for word in (str(stoppable_valkey.url), ".sock", "Connect", "Errno"))
        assert (await client.get("/v2/health/live")).status_code == 200
        assert "msf_redis_up 0.0" in (await client.get("/metrics")).text

        stoppable_valkey.start()
        async with FakeWorker(stoppable_valkey.url):
            await until(lambda: status(client), 200)
            assert (await client.get("/v2/health/ready")).status_code == 200


@pytest.mark.parametrize("path", [PATH, "/v1/jobs"])
@pytest.mark.parametrize(("headers", "num_kept"), [({}, 0), ({"Idempotency-Key": "order-17"}, 1)])
async def test_only_a_job_that_can_be_asked_for_again_is_kept_if_its_admission_was_not_confirmed(
    app: FastAPI,
    client: httpx.AsyncClient,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    headers: dict[str, str],
    num_kept: int,
) -> None:
    services: Services = app.state.services
    admit = services.queue.admit

    async def admit_without_reply(*arguments: Any, **options: Any) -> JobRecord:
        await admit(*arguments, **options)
        raise QueueUnavailable("the reply was lost")

    monkeypatch.setattr(services.queue, "admit", admit_without_reply)
    worker.claiming = False
    response = await client.post(path, json=BAG, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_unavailable")
    assert await num_jobs_queued(services.queue) == num_kept


async def test_a_server_may_start_before_redis(stoppable_valkey: EmbeddedValkey) -> None:
    stoppable_valkey.stop()
    async with serving(ServerSettings(redis_url=stoppable_valkey.url)) as app, client_of(app) as client:
        assert (await client.post(PATH, json=BAG)).status_code == 503
        stoppable_valkey.start()
        async with FakeWorker(stoppable_valkey.url):
            await until(lambda: status(client), 200)


async def test_a_waiting_request_survives_an_outage_of_redis(stoppable_valkey: EmbeddedValkey) -> None:
    async with serving(ServerSettings(redis_url=stoppable_valkey.url)) as app, client_of(app) as client:
        async with FakeWorker(stoppable_valkey.url):
            pass  # its model stays known
        services: Services = app.state.services
        waiting = asyncio.create_task(client.post(PATH, json={**BAG, "seed": 7}))
        await until(lambda: num_jobs_queued(services.queue), 1)
        stoppable_valkey.stop()
        stoppable_valkey.start()
        async with FakeWorker(stoppable_valkey.url):
            response = await waiting
    assert response.status_code == 200
    assert response.json()["seed"] == 7


async def test_the_reply_reader_is_restarted_after_a_failure(
    settings: ServerSettings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = ReplyReader.run
    failures = iter([RuntimeError("a bug")])

    async def run_after_failing(reader: ReplyReader) -> None:
        for failure in failures:
            raise failure
        await run(reader)

    monkeypatch.setattr(ReplyReader, "run", run_after_failing)
    async with serving(settings) as app, client_of(app) as client:
        assert await status(client) == 200
    assert "a bug" in caplog.text


async def test_an_expired_result_is_reported(
    app: FastAPI, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_job_id: str) -> None:
        return None

    services: Services = app.state.services
    monkeypatch.setattr(services.queue, "read", gone)
    response = await client.post(PATH, json=BAG)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "result_gone"
    assert "no longer kept" in response.json()["error"]["message"]


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="max_images_per_request 5000 must not exceed max_queued_samples 4096"):
        ServerSettings(redis_url="redis://nowhere", max_images_per_request=5000)


@pytest.mark.parametrize("is_beyond", [False, True], ids=["nearly full", "over its limit"])
async def test_a_full_store_is_told_in_words_on_every_path_and_accepted_work_still_ends(
    client: httpx.AsyncClient, worker: FakeWorker, redis: Redis, redis_url: str, is_beyond: bool
) -> None:
    seeded, repeated = {**BAG, "seed": 1}, {"Idempotency-Key": "order-17"}
    for headers in (None, repeated):
        assert (await client.post(PATH, json=seeded, headers=headers)).status_code == 200  # cached from now on
    worker.holding = True
    running = asyncio.create_task(client.post(PATH, json={**BAG, "n": 64}))
    await until(lambda: len(worker.claimed) == 2)
    try:
        used_bytes = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used_bytes - 100_000 if is_beyond else used_bytes + 300_000)
        answers = [
            await client.post(PATH, json=seeded),
            await client.post(PATH, json={**BAG, "n": 64}),
            await client.post("/v1/jobs", json=seeded),
            await client.post("/v1/jobs", json={**BAG, "seed": 3}),
            await client.post(PATH, json={**seeded, "stream": True}),
            await client.get("/v2/health/ready"),
        ]
        for answer in answers:
            assert answer.status_code in (429, 503), answer.text
            assert "retry-after" in answer.headers
            assert not any(word in answer.text for word in (redis_url, ".sock", "OOM", "maxmemory", "script"))
        worker.holding = False
        assert (await running).status_code == 200
    finally:
        await redis.config_set("maxmemory", "1gb")
    await until(lambda: _is_ready(client))


async def _is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/v2/health/ready")).status_code == 200
