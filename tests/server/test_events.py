"""`GET /v1/jobs/{id}/events`: live events, resumable on any server."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from msf_scheduler.claims import Claim
from msf_scheduler.jobs import JobError, Preview, Progress
from msf_server import sse as server_events
from msf_server.settings import ServerSettings
from tests.server.conftest import listening, until
from tests.server.fake_worker import FakeWorker

BAG = {"prompt": "bag", "n": 2, "seed": 1, "partial_images": 2}
Event = tuple[str, str, dict[str, Any]]  # type, id, data


async def read_events(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Comments are events without a type."""
    kind, event_id, data = "", "", {}
    async for line in lines:
        name, _, value = line.partition(": ")
        match name:
            case "event":
                kind = value
            case "id":
                event_id = value
            case "data":
                data = json.loads(value)
            case "":
                yield kind, event_id, data
                kind, event_id, data = "", "", {}


@asynccontextmanager
async def following(url: str, job_id: str, **headers: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with (
        httpx.AsyncClient(base_url=url, timeout=20) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read_events(answer.aiter_lines())


async def to_the_end(url: str, job_id: str, **headers: str) -> list[Event]:
    async with following(url, job_id, **headers) as events:
        return [event async for event in events if event[0]]


async def order(url: str, **fields: object) -> str:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/jobs", json={**BAG, **fields})
    job_id: str = answer.raise_for_status().json()["id"]
    return job_id


async def claim_of(worker: FakeWorker, job_id: str) -> Claim:
    await until(lambda: any(claim.job.id == job_id for claim in worker.claimed))
    return next(claim for claim in reversed(worker.claimed) if claim.job.id == job_id)


async def show(worker: FakeWorker, claim: Claim, sequence: int, index: int, number: int) -> None:
    assert await worker.leases.publish_preview(claim, sequence, Preview(index=index, number=number), b"%d" % sequence)


async def test_a_job_from_the_queue_to_its_images(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    job_id = await order(live_url)
    claim = await claim_of(worker, job_id)
    async with following(live_url, job_id) as events:
        progress = Progress(stage="base", steps_done=3, num_steps=26, samples_done=0)
        assert await worker.leases.publish_progress(claim, progress)
        kind, _, data = await anext(events)
        assert (kind, data["stage"], data["steps_done"], data["num_samples"]) == ("progress", "base", 3, 2)
        await show(worker, claim, 1, index=0, number=0)
        await show(worker, claim, 2, index=1, number=0)
        previews = [await anext(events), await anext(events)]
        assert [event_id for _, event_id, _ in previews] == ["1-1", "1-2"]
        assert [data["index"] for *_, data in previews] == [0, 1]
        assert b64decode(previews[1][2]["b64_json"]) == b"2"
        worker.holding = False
        kind, event_id, data = await anext(events)
        assert (kind, event_id) == ("succeeded", "1-end")
        assert [image["index"] for image in data["data"]] == [0, 1]
        assert [event async for event in events] == []


async def test_position_in_the_queue(live_url: str, worker: FakeWorker) -> None:
    worker.claiming = False
    jobs = [await order(live_url, seed=seed) for seed in range(3)]
    async with following(live_url, jobs[2]) as events:
        assert (await anext(events))[2] == {"type": "queued", "job_id": jobs[2], "position": 2}
        await worker.queue.cancel(jobs[0])
        assert (await anext(events))[2]["position"] == 1
        worker.claiming = True
        assert [kind async for kind, *_ in events][-1] == "succeeded"


async def test_another_server_resumes_after_the_last_event(
    live_url: str, settings: ServerSettings, worker: FakeWorker
) -> None:
    worker.holding = True
    job_id = await order(live_url)
    claim = await claim_of(worker, job_id)
    for sequence in (1, 2, 3):
        await show(worker, claim, sequence, index=sequence % 2, number=sequence // 2)
    async with listening(settings) as other_url:
        worker.holding = False
        events = await to_the_end(other_url, job_id, **{"Last-Event-ID": "1-2"})
    assert [event_id for _, event_id, _ in events] == ["1-3", "1-end"]
    async with httpx.AsyncClient(base_url=live_url) as client:
        answer = await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "1-end"})
        assert answer.status_code == 204


async def test_previews_outlive_the_job(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    job_id = await order(live_url)
    await show(worker, await claim_of(worker, job_id), 1, index=0, number=0)
    worker.holding = False
    first = await to_the_end(live_url, job_id)
    assert [kind for kind, *_ in await to_the_end(live_url, job_id)] == ["partial_image", "succeeded"]
    assert (await to_the_end(live_url, job_id))[-1][2]["data"] == first[-1][2]["data"]


async def test_a_new_attempt_sends_its_previews_again(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    job_id = await order(live_url)
    claim = await claim_of(worker, job_id)
    await show(worker, claim, 1, index=0, number=0)
    async with following(live_url, job_id) as events:
        assert (await anext(events))[1] == "1-1"
        worker.claimed.clear()
        await worker.leases.release(claim)
        again = await claim_of(worker, job_id)
        await show(worker, again, 1, index=0, number=0)
        ids = []
        async for kind, event_id, _ in events:
            if kind == "partial_image":
                ids.append(event_id)
                break
        assert ids == ["2-1"]
        assert not await worker.leases.publish_preview(claim, 2, Preview(index=0, number=1), b"late")


async def test_only_requested_previews_are_sent(live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    leader = await order(live_url, partial_images=3)
    follower = await order(live_url, partial_images=1)
    claim = await claim_of(worker, leader)
    for number in range(3):
        await show(worker, claim, number + 1, index=0, number=number)
    worker.holding = False
    for job_id, numbers in ((leader, [0, 1, 2]), (follower, [0])):
        previews = [data for kind, _, data in await to_the_end(live_url, job_id) if kind == "partial_image"]
        assert [data["partial_image_index"] for data in previews] == numbers
        assert {data["job_id"] for data in previews} == {job_id}


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_failure_and_cancellation_end_the_stream(live_url: str, worker: FakeWorker, end: str) -> None:
    worker.holding = True
    job_id = await order(live_url, cache=False)
    claim = await claim_of(worker, job_id)
    async with following(live_url, job_id) as events:
        if end == "cancelled":
            await worker.queue.cancel(job_id)
        else:
            await worker.leases.fail(claim, JobError(code="non_finite", message="no number"))
        kinds = [(kind, data) async for kind, _, data in events]
    assert kinds[-1][0] == end
    assert kinds[-1][1]["status"] == end


async def test_a_silent_stream_sends_heartbeats(
    live_url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_events, "HEARTBEAT_S", 0.0)
    worker.holding = True
    job_id = await order(live_url)
    await claim_of(worker, job_id)
    async with following(live_url, job_id) as events:
        assert await anext(events) == ("", "", {})
    worker.holding = False


@pytest.mark.parametrize("last_event_id", ["x", "1", "1-x", "-1-1", "1-1-1", "9" * 20 + "-1"])
async def test_a_malformed_last_event_id_is_refused(client: httpx.AsyncClient, last_event_id: str) -> None:
    job_id = (await client.post("/v1/jobs", json=BAG)).json()["id"]
    answer = await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last_event_id})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Last-Event-ID"


async def test_an_unknown_job_has_no_events(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/jobs/nope/events")).status_code == 404
