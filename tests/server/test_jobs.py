"""Jobs: asynchronous, idempotent and shared requests, and their terms."""

from __future__ import annotations

import asyncio
import base64
from functools import partial

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from msf_scheduler.jobs import FastestTimes, JobError, Priority
from msf_scheduler.leases import Leases
from msf_scheduler.queue import JobQueue
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving, until
from tests.server.fake_worker import FASHION, FakeWorker, draw

PATH, JOBS = "/v1/images/generations", "/v1/jobs"
BAG = {"prompt": "bag"}


async def status_of(client: httpx.AsyncClient, job_id: str) -> str:
    answer = (await client.get(f"{JOBS}/{job_id}")).json()
    return str(answer["status"])


async def test_a_job_is_accepted_and_fetched_later(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    accepted = await client.post(JOBS, json={**BAG, "n": 2, "timeout_s": 100, "priority": "low"})
    assert accepted.status_code == 202
    job = accepted.json()
    assert accepted.headers["location"] == f"{JOBS}/{job['id']}"
    assert job["deadline_at"] == pytest.approx(job["created_at"] + 100)
    assert (job["priority"], job["data"]) == ("low", None)
    await until(lambda: status_of(client, job["id"]), "running")
    worker.holding = False
    await until(lambda: status_of(client, job["id"]), "succeeded")
    done = (await client.get(accepted.headers["location"])).json()
    assert [base64.b64decode(image["b64_json"]) for image in done["data"]] == draw(worker.claimed[0].job.spec)
    assert done["timings"]["total_ms"] == 80.0


async def test_a_running_job_is_cancelled_and_an_ended_one_stays(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    running = (await client.post(JOBS, json=BAG)).json()["id"]
    await until(lambda: status_of(client, running), "running")
    assert (await client.delete(f"{JOBS}/{running}")).json()["status"] == "cancelled"
    await until(lambda: running in worker.lost)
    worker.holding = False
    ended = (await client.post(JOBS, json=BAG)).json()["id"]
    await until(lambda: status_of(client, ended), "succeeded")
    assert (await client.delete(f"{JOBS}/{ended}")).json()["status"] == "succeeded"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_job_is_not_found(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, f"{JOBS}/nope")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "job_not_found"


async def test_a_failed_job_has_its_error(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.failure = JobError(code="poisoned", message="it kills")
    job_id = (await client.post(JOBS, json=BAG)).json()["id"]
    await until(lambda: status_of(client, job_id), "failed")
    assert (await client.get(f"{JOBS}/{job_id}")).json()["error"] == {"code": "poisoned", "message": "it kills"}


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("priority", "urgent", '"high", "normal" or "low"'),
        ("timeout_s", 0, "above 0 and up to 3600"),
        ("timeout_s", 1e9, "above 0 and up to 3600"),
        ("on_disconnect", "stay", '"cancel" or "finish"'),
        ("cache", "yes", "true or false"),
    ],
)
async def test_invalid_terms_are_refused(client: httpx.AsyncClient, field: str, value: object, allowed: str) -> None:
    answer = await client.post(PATH, json={**BAG, field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert allowed in error["message"]


async def test_the_terms_reach_the_queue(client: httpx.AsyncClient, worker: FakeWorker, app: FastAPI) -> None:
    weights = {"address-127.0.0.1": 2.5}
    app.state.services.settings = app.state.services.settings.model_copy(update={"tenant_weights": weights})
    headers = {"Authorization": "Bearer secret-key"}
    await client.post(PATH, json={**BAG, "priority": "high", "user": "ann", "timeout_s": 60}, headers=headers)
    await client.post(PATH, json=BAG)
    with_key, without = (claim.job.terms for claim in worker.claimed)
    assert (with_key.priority, with_key.user, with_key.timeout_s) == (Priority.HIGH, "ann", 60)
    assert with_key.tenant.startswith("key-")
    assert "secret" not in with_key.tenant
    assert (without.tenant, without.weight, without.priority) == ("address-127.0.0.1", 2.5, Priority.NORMAL)


async def test_a_timeout_that_no_worker_can_meet_is_refused(settings: ServerSettings, redis_url: str) -> None:
    slow = FASHION.model_copy(update={"least": FastestTimes(step_s=1.0, sample_step_s=0.5, decode_s=0.5)})
    async with FakeWorker(redis_url, [slow]) as worker, serving(settings) as app, client_of(app) as client:
        answer = await client.post(PATH, json={**BAG, "num_steps": 10, "timeout_s": 10.0})
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        assert "at least 10.5 s" in answer.json()["error"]["message"]
        assert (await client.post(PATH, json={**BAG, "num_steps": 10, "timeout_s": 11.0})).status_code == 200
        assert len(worker.claimed) == 1


async def test_a_job_that_is_not_claimed_in_time_expires(settings: ServerSettings, redis_url: str) -> None:
    async with FakeWorker(redis_url):
        pass  # its model stays known
    async with serving(settings) as app, client_of(app) as client:
        answer = await client.post(PATH, json={**BAG, "timeout_s": 0.3})
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"
        job_id = (await client.post(JOBS, json={**BAG, "timeout_s": 0.3})).json()["id"]
        await until(lambda: status_of(client, job_id), "expired")


async def test_a_repeated_idempotency_key_returns_the_same_job(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "order-1"}
    worker.holding = True
    both = [asyncio.create_task(client.post(PATH, json=BAG, headers=headers)) for _ in range(2)]
    await until(lambda: len(worker.claimed) == 1)
    worker.holding = False
    first, second = [(await each).json() for each in both]
    third = (await client.post(PATH, json=BAG, headers=headers)).json()
    assert first["data"] == second["data"] == third["data"]
    assert {each["job_id"] for each in (first, second, third)} == {worker.claimed[0].job.id}
    assert len(worker.claimed) == 1

    conflict = await client.post(PATH, json={"prompt": "coat"}, headers=headers)
    assert conflict.status_code == 409
    assert conflict.headers["x-should-retry"] == "false"
    assert conflict.json()["error"]["param"] == "Idempotency-Key"
    bad = await client.post(PATH, json=BAG, headers={"Idempotency-Key": "x" * 300})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize("extra", [{"body": {"on_disconnect": "finish"}}, {"headers": {"Idempotency-Key": "k"}}])
async def test_a_job_may_outlive_its_caller(
    live_url: str, worker: FakeWorker, extra: dict[str, dict[str, str]]
) -> None:
    body, headers = {**BAG, **extra.get("body", {})}, extra.get("headers")
    worker.holding = True
    async with httpx.AsyncClient(base_url=live_url) as client:
        leaving = asyncio.create_task(client.post(PATH, json=body, headers=headers))
        await until(lambda: len(worker.claimed) == 1)
        leaving.cancel()
        job_id = worker.claimed[0].job.id
        await until(lambda: _clients_gone(client), 1.0)
        worker.holding = False
        await until(lambda: status_of(client, job_id), "succeeded")


async def _clients_gone(client: httpx.AsyncClient) -> float:
    metrics = (await client.get("/metrics")).text
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("msf_clients_gone_total{"))


async def test_identical_requests_share_one_job(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    seeded = {**BAG, "seed": 7, "response_format": "b64_json"}
    both = [asyncio.create_task(client.post(PATH, json=seeded)) for _ in range(2)]
    alone = [asyncio.create_task(client.post(PATH, json=body)) for body in ({**seeded, "cache": False}, BAG, BAG)]
    await until(lambda: len(worker.claimed) == 4)
    worker.holding = False
    first, second = sorted([(await each).json() for each in both], key=lambda answer: answer["cached"])
    assert (first["cached"], second["cached"]) == (False, True)
    assert first["data"] == second["data"]
    assert [(await each).json()["cached"] for each in alone] == [False] * 3
    later = (await client.post(PATH, json=seeded)).json()
    assert (later["cached"], later["data"]) == (True, first["data"])
    assert len(worker.claimed) == 4


async def test_nothing_is_shared_when_workers_differ(settings: ServerSettings, worker: FakeWorker) -> None:
    painting = FASHION.model_copy(update={"fingerprint": "painting"})
    await worker.registry.register(worker.info.model_copy(update={"id": "other", "models": (painting,)}))
    async with serving(settings) as app, client_of(app) as client:
        answers = [(await client.post(PATH, json={**BAG, "seed": 7})).json() for _ in range(2)]
    assert [answer["cached"] for answer in answers] == [False, False]


async def test_a_shared_job_survives_the_disconnect_of_one_caller(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    seeded = {**BAG, "seed": 7}
    async with httpx.AsyncClient(base_url=live_url) as client:
        leaving = asyncio.create_task(client.post(PATH, json=seeded))
        await until(lambda: len(worker.claimed) == 1)
        staying = (await client.post(JOBS, json=seeded)).json()["id"]
        leaving.cancel()
        await until(lambda: worker.claimed[0].job.id in worker.lost)
        worker.holding = False
        await until(lambda: status_of(client, staying), "succeeded")


async def test_new_work_is_refused_if_results_may_not_fit(
    client: httpx.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    worker.holding = True
    accepted = (await client.post(JOBS, json=BAG)).json()["id"]
    await until(lambda: status_of(client, accepted), "running")
    try:
        await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] + 200_000)
        refused = await client.post(PATH, json={**BAG, "n": 64})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "storage_full"
        assert int(refused.headers["retry-after"]) >= 1
        worker.holding = False
        await until(lambda: status_of(client, accepted), "succeeded")
    finally:
        await redis.config_set("maxmemory", "1gb")


async def test_a_server_requeues_the_jobs_of_dead_workers(
    settings: ServerSettings, redis: Redis, worker: FakeWorker
) -> None:
    """For when all workers are gone and the first of them is still starting."""
    worker.holding = True
    async with serving(settings) as app, client_of(app) as client:
        job_id = (await client.post(JOBS, json=BAG)).json()["id"]
        await until(lambda: status_of(client, job_id), "running")
        await Leases(redis, lease_s=0.0).renew(worker.info.id, worker.claimed)
        await worker.__aexit__()
        await until(lambda: status_of(client, job_id), "queued")
    assert (await JobQueue(redis).depth(FASHION.name, FASHION.version)).num_jobs_queued == 1


async def test_prefer_header_returns_the_job(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    worker.holding = True
    for prefer, applied in (
        ("respond-async", "respond-async"),
        ("wait=0", "wait=0"),
        ("handling=lenient, Respond-Async, wait=0", "respond-async, wait=0"),
    ):
        answer = await client.post(PATH, json=BAG, headers={"Prefer": prefer})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == applied
        assert answer.headers["location"] == f"{JOBS}/{answer.json()['id']}"
        assert answer.json()["status"] in ("queued", "running")
    worker.holding = False
    for claim in list(worker.claimed):
        await until(partial(status_of, client, claim.job.id), "succeeded")
    waited = await client.post(PATH, json=BAG, headers={"Prefer": "respond-async, wait=20"})
    assert (waited.status_code, len(waited.json()["data"])) == (200, 1)
    ignored = await client.post(PATH, json=BAG, headers={"Prefer": "wait=soon, return=minimal"})
    assert ignored.status_code == 200


async def test_jobs_are_listed_by_page_newest_first(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    mine, other = {"Authorization": "Bearer mine"}, {"Authorization": "Bearer other"}
    ids = [(await client.post(JOBS, json=BAG, headers=mine)).json()["id"] for _ in range(5)]
    await client.post(JOBS, json=BAG, headers=other)
    first = (await client.get(JOBS, params={"limit": 3}, headers=mine)).json()
    assert [job["id"] for job in first["data"]] == ids[:1:-1]
    assert first["has_more"]
    last = (await client.get(JOBS, params={"limit": 3, "after": ids[2]}, headers=mine)).json()
    assert ([job["id"] for job in last["data"]], last["has_more"]) == (ids[1::-1], False)
    assert {job["data"] for job in last["data"]} == {None}
    assert (await client.get(JOBS, params={"after": "nope"}, headers=mine)).json()["data"] == []
    assert (await client.get(JOBS)).json()["data"] == []
    wrong = await client.get(JOBS, params={"limit": 0}, headers=mine)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "limit")


async def test_a_job_cannot_be_a_stream(client: httpx.AsyncClient) -> None:
    answer = await client.post(JOBS, json={**BAG, "stream": True})
    assert answer.status_code == 400
    assert "/v1/jobs/{id}/events" in answer.json()["error"]["message"]
