"""A few-step version answers for its model, and its teacher whatever it was not made for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.server.conftest import client_of
from tests.server.fake_worker import FASHION, FakeWorker

IMAGES = "/v1/images/generations"
FEW_STEPS = FASHION.model_copy(
    update={
        "version": "2",
        "teacher": "1",
        "default_num_steps": 3,
        "max_num_steps": 8,
        "max_guidance_scale": 2.0,
        "takes_negative": False,
    }
)


@pytest.fixture
async def worker(redis_url: str) -> AsyncIterator[FakeWorker]:
    """Serve a few-step version and its teacher."""
    async with FakeWorker(redis_url, [FASHION, FEW_STEPS]) as worker:
        yield worker


async def spec_of(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs", json={"prompt": "bag", "model": "fashion", **fields})
    assert answer.status_code == 202, answer.text
    spec: dict[str, Any] = answer.json()["spec"]
    return spec


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": None}, {"num_steps": 8}, {"guidance_scale": 2.0}, {"quality": "low"}, {"quality": "auto"}],
    ids=str,
)
async def test_the_newest_version_answers_what_it_can(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await spec_of(client, **fields))["version"] == "2"


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 9},
        {"num_inference_steps": 20},
        {"guidance_scale": 2.5},
        {"cfg_scale": 4},
        {"negative_prompt": "coat"},
        {"quality": "high"},
        {"quality": "hd"},
    ],
    ids=str,
)
async def test_the_teacher_answers_the_rest(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    spec = await spec_of(client, **fields)
    assert spec["version"] == "1"
    images = await client.post(IMAGES, json={"prompt": "bag", "model": "fashion", "seed": 1, **fields})
    assert images.json()["version"] == "1"


async def test_a_high_quality_has_the_steps_of_the_teacher(client: httpx.AsyncClient) -> None:
    spec = await spec_of(client, quality="high")
    assert spec["num_steps"] == 2 * FASHION.default_num_steps


async def test_a_version_asked_for_by_its_number_answers_itself(client: httpx.AsyncClient) -> None:
    assert (await spec_of(client, model="fashion:2", quality="high"))["version"] == "2"
    answer = await client.post(IMAGES, json={"prompt": "bag", "model": "fashion:2", "num_steps": 9})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Invalid num_steps: 9. Allowed: 2 to 8."


async def test_without_its_teacher_the_few_step_version_says_its_limits(redis_url: str, app: FastAPI) -> None:
    async with FakeWorker(redis_url, [FEW_STEPS]), client_of(app) as client:
        assert (await spec_of(client, quality="high"))["version"] == "2"
        answer = await client.post(IMAGES, json={"prompt": "bag", "model": "fashion", "num_steps": 9})
    assert answer.json()["error"]["message"] == "Invalid num_steps: 9. Allowed: 2 to 8."


async def test_the_models_list_names_the_teacher(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert {model["id"]: model["teacher"] for model in models} == {"fashion:1": None, "fashion:2": "1"}
