"""Metrics summed over several servers and workers match the counts of a client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_server.settings import ServerSettings
from tests.polling import eventually
from tests.promtool import Promtool
from tests.server.conftest import client_of, serving
from tests.worker.support import RunningWorker, own_plans, running, with_seconds

IMAGES = "/v1/images/generations"
JOBS = "/v1/jobs"
OUTCOMES = {200: "succeeded", 202: "succeeded", 400: "invalid", 404: "invalid", 504: "timeout"}
BODIES: list[dict[str, object]] = [
    {"prompt": "circle", "n": 1 + seed % 3, "num_steps": 4 + seed % 5, "guidance_scale": 1.0 + seed % 2}
    for seed in range(24)
]


@dataclass
class Stack:
    clients: list[httpx.AsyncClient]
    workers: list[RunningWorker]

    async def texts(self) -> list[str]:
        """Return the /metrics of every process."""
        servers = [(await client.get("/metrics")).text for client in self.clients]
        return servers + [generate_latest(worker.metrics.registry).decode() for worker in self.workers]

    async def total(self, name: str, **labels: str) -> float:
        """Return the sum over processes of the series with these labels, as PromQL's sum()."""
        return sum(
            sample.value
            for text in await self.texts()
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def post(self, number: int, path: str, body: dict[str, object]) -> httpx.Response:
        return await self.clients[number % len(self.clients)].post(path, json=body)

    async def until_idle(self) -> None:
        async def idle() -> bool:
            depths = [await worker.queue.depth("tiny", "1") for worker in self.workers]
            return all(worker.is_idle() for worker in self.workers) and not any(
                depth.num_jobs_queued + depth.num_jobs_running for depth in depths
            )

        await eventually(idle)


@pytest.fixture
async def stack(redis_url: str, redis: Redis, version: ModelVersion, plans: ModelPlans) -> AsyncIterator[Stack]:
    async with AsyncExitStack() as opened:
        costly = with_seconds(plans, 1.0)  # so that no worker claims all jobs
        workers = [
            await opened.enter_async_context(running(redis, version, own_plans(costly), slots=4)) for _ in range(2)
        ]
        settings = ServerSettings(redis_url=redis_url, port=0)
        apps = [await opened.enter_async_context(serving(settings)) for _ in range(2)]
        yield Stack([await opened.enter_async_context(client_of(app)) for app in apps], workers)


async def test_every_request_image_and_step_is_counted_once(stack: Stack) -> None:
    sent: list[tuple[str, dict[str, object]]] = [(IMAGES, body) for body in BODIES] + [
        (JOBS, body) for body in BODIES[:8]
    ]
    unknown_class: dict[str, object] = {"prompt": "hexagon"}
    sent += [(IMAGES, unknown_class)] * 3 + [(IMAGES, {"prompt": "star", "model": "none"})] * 2
    answers = await asyncio.gather(*(stack.post(number, *request) for number, request in enumerate(sent)))
    await stack.until_idle()

    outcomes = Counter((path, OUTCOMES[answer.status_code]) for (path, _), answer in zip(sent, answers, strict=True))
    assert outcomes == {(IMAGES, "succeeded"): 24, (JOBS, "succeeded"): 8, (IMAGES, "invalid"): 5}
    for (path, outcome), count in outcomes.items():
        assert await stack.total("msf_requests_total", route=path, outcome=outcome) == count
        assert await stack.total("msf_request_seconds_count", route=path, outcome=outcome) == count
    assert await stack.total("msf_requests_total") == len(sent)
    received = sum(len(answer.json()["data"]) for answer in answers if answer.status_code == 200)
    assert await stack.total("msf_images_total") == received == sum(_num_images(BODIES))

    admitted = [*BODIES, *BODIES[:8]]
    samples, steps = sum(_num_images(admitted)), sum(_num_steps(admitted))
    assert await stack.total("msf_worker_jobs_total", outcome="succeeded") == len(admitted)
    assert await stack.total("msf_claims_total") == len(admitted)
    assert await stack.total("msf_queue_seconds_count") == len(admitted)
    assert await stack.total("msf_stage_seconds_count", stage="decode") == len(admitted)
    assert await stack.total("msf_steps_total", stage="decode") == samples
    assert await stack.total("msf_steps_total") == await stack.total("msf_steps_demanded_total") == steps + samples
    filled = await stack.total("msf_step_batch_fill_ratio_count")
    assert filled == await stack.total("msf_step_batches_total") == await stack.total("msf_step_batch_seconds_count")
    assert all(worker.num_jobs("succeeded") for worker in stack.workers)  # both took part


async def test_every_missed_deadline_is_counted_once(stack: Stack) -> None:
    body = {"prompt": "star", "n": 4, "num_steps": 50, "timeout_s": 0.05}
    answers = await asyncio.gather(*(stack.post(number, IMAGES, body) for number in range(24)))
    await stack.until_idle()
    missed = sum(answer.status_code == 504 for answer in answers)
    assert missed
    assert await stack.total("msf_requests_total", outcome="timeout") == missed
    in_queue, in_slots = "msf_jobs_expired_queued_total", "msf_worker_jobs_total"
    assert await stack.total(in_queue) + await stack.total(in_slots, outcome="expired") == missed


async def test_promtool_accepts_all_metrics(stack: Stack, promtool: Promtool) -> None:
    await stack.post(0, IMAGES, BODIES[0])
    for text in await stack.texts():
        await asyncio.to_thread(promtool, "check", "metrics", stdin=text)


def _num_images(bodies: Iterable[dict[str, object]]) -> list[int]:
    return [int(str(body["n"])) for body in bodies]


def _num_steps(bodies: Iterable[dict[str, object]]) -> list[int]:
    return [int(str(body["n"])) * int(str(body["num_steps"])) for body in bodies]
