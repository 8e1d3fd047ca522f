"""A shutdown answers whoever waits, in the form that its route promises."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from msf_scheduler.jobs import JobState
from msf_server.dependencies import Services
from tests.server.conftest import until
from tests.server.fake_worker import FakeWorker

BAG = {"prompt": "bag", "num_steps": 4}
TENSORS = {"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", "data": [1]}]}


@pytest.fixture
def services(app: FastAPI, client: httpx.AsyncClient, worker: FakeWorker) -> Services:
    """Return the services of a server whose worker never finishes."""
    worker.holding = True
    services: Services = app.state.services
    return services


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/images/generations", BAG), ("/v2/models/fashion/infer", TENSORS), ("/v2/repository/models/new/load", {})],
)
async def test_requests_that_take_too_long_get_503_in_their_own_form(
    services: Services, client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    waiting = asyncio.create_task(client.post(path, json=body))
    await until(lambda: len(services.drain._unanswered) == 1)
    services.drain.begin()
    services.drain.cut_short()
    answer = await waiting
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "shutting down" in (error if path.startswith("/v2/") else error["message"])
    assert answer.headers["x-request-id"]


async def test_the_job_of_a_caller_that_got_503_is_cancelled_unless_it_may_be_asked_for_again(
    services: Services, client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    headers: list[dict[str, str]] = [{}, {"Idempotency-Key": "again"}]
    waiting = [asyncio.create_task(client.post("/v1/images/generations", json=BAG, headers=each)) for each in headers]
    await until(lambda: len(services.submission._replies._awaited) == 2)
    job_ids = list(services.submission._replies._awaited)
    await until(lambda: len(worker.claimed) >= 1)
    services.drain.cut_short()
    assert [(await each).status_code for each in waiting] == [503, 503]
    jobs = [await services.queue.get(job_id) for job_id in job_ids]
    states = [job.state for job in jobs if job is not None]
    assert sum(state is JobState.CANCELLED for state in states) == 1
    assert not [state for state in states if state is JobState.FAILED]


async def test_a_stream_of_images_ends_with_an_error_event_when_it_is_cut_short(
    services: Services, client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    waiting = asyncio.create_task(client.post("/v1/images/generations", json=BAG | {"stream": True}))
    await until(lambda: len(worker.claimed) == 1)
    services.drain.begin()
    await asyncio.sleep(0)
    assert not waiting.done()
    services.drain.cut_short()
    text = (await waiting).text
    assert "event: error" in text
    assert '"draining"' in text


async def test_readers_of_events_leave_at_once(services: Services, client: httpx.AsyncClient) -> None:
    job = (await client.post("/v1/jobs", json=BAG)).json()
    services.drain.begin()
    text = (await client.get(f"/v1/jobs/{job['id']}/events")).text
    assert "event: error" in text
    assert '"draining"' in text
