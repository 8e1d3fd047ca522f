"""`POST /v1/images/generations`: images, defaults and formats."""

from __future__ import annotations

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from tests.server.fake_worker import FASHION, FakeWorker, draw

PATH = "/v1/images/generations"


async def test_the_answer_suffices_to_repeat_the_request(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    fields = {"prompt": "sneaker", "n": 3, "seed": 7, "num_steps": 10, "guidance_scale": 1.5}
    response = await client.post(PATH, json=fields)
    assert response.status_code == 200
    answer = response.json()
    spec = worker.claimed[0].job.spec
    assert (spec.label, spec.num_samples, spec.num_steps, spec.guidance_scale) == (7, 3, 10, 1.5)
    assert [base64.b64decode(image["b64_json"]) for image in answer["data"]] == draw(spec)
    assert [image["index"] for image in answer["data"]] == [0, 1, 2]
    assert {key: answer[key] for key in ("model", "version", "seed", "num_steps", "guidance_scale")} == {
        "model": "fashion",
        "version": "1",
        "seed": 7,
        "num_steps": 10,
        "guidance_scale": 1.5,
    }
    assert answer["job_id"] == worker.claimed[0].job.id
    assert answer["created"] > 1_600_000_000
    assert answer["output_format"] == "png"


async def test_timings_are_in_the_body_and_in_server_timing(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, json={"prompt": "bag"})
    assert response.json()["timings"] == {
        "queue_ms": 4.0,
        "base_ms": 30.0,
        "residual_ms": 22.5,
        "decode_ms": 12.0,
        "encode_ms": 2.0,
        "total_ms": 80.0,
    }
    parts = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert {f"{name}_ms": float(ms) for name, ms in parts.items()} == response.json()["timings"]


async def test_defaults_come_from_the_model(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    nulls = {
        "n": None,
        "seed": None,
        "num_steps": None,
        "guidance_scale": None,
        "output_format": None,
        "model": None,
    }
    response = await client.post(PATH, json={"prompt": "Dress", **nulls})
    assert response.status_code == 200
    spec = worker.claimed[0].job.spec
    assert (spec.num_samples, spec.num_steps, spec.guidance_scale, spec.output_format) == (1, 12, 2.0, "png")


async def test_a_random_seed_is_returned(client: httpx.AsyncClient) -> None:
    first, second = [(await client.post(PATH, json={"prompt": "bag"})).json() for _ in range(2)]
    assert first["seed"] != second["seed"]
    again = (await client.post(PATH, json={"prompt": "bag", "seed": first["seed"]})).json()
    assert again["data"] == first["data"]


@pytest.mark.parametrize("prompt", ["Ankle boot", "ANKLE BOOT", " ankle boot ", "9"])
async def test_a_class_is_selected_by_name_or_id(client: httpx.AsyncClient, worker: FakeWorker, prompt: str) -> None:
    assert (await client.post(PATH, json={"prompt": prompt})).status_code == 200
    assert worker.claimed[0].job.spec.label == 9


@pytest.mark.parametrize("model", ["fashion", "fashion:1"])
async def test_a_model_is_selected_by_name_or_version(client: httpx.AsyncClient, model: str) -> None:
    response = await client.post(PATH, json={"prompt": "bag", "model": model})
    assert response.json()["model"] == "fashion"


@pytest.mark.parametrize("output_format", ["png", "webp", "jpeg"])
async def test_files_have_the_requested_format(client: httpx.AsyncClient, output_format: str) -> None:
    response = await client.post(PATH, json={"prompt": "bag", "output_format": output_format})
    file = base64.b64decode(response.json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(file)).format == output_format.upper()


async def test_fields_of_openai_clients_are_accepted(client: httpx.AsyncClient) -> None:
    fields = {
        "response_format": "b64_json",
        "size": "32x32",
        "quality": "high",
        "background": "auto",
        "style": "vivid",
        "moderation": "low",
        "output_compression": 90,
        "user": "someone",
    }
    assert (await client.post(PATH, json={"prompt": "bag", **fields})).status_code == 200
    assert (await client.post(PATH, json={"prompt": "bag", "size": "auto"})).status_code == 200


async def test_concurrent_requests_get_their_own_images(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    responses = await asyncio.gather(
        *(client.post(PATH, json={"prompt": str(i % 10), "n": 1 + i % 3, "seed": i}) for i in range(200))
    )
    assert {response.status_code for response in responses} == {200}
    specs = {claim.job.id: claim.job.spec for claim in worker.claimed}
    for i, response in enumerate(responses):
        answer = response.json()
        assert answer["seed"] == i
        files = [base64.b64decode(image["b64_json"]) for image in answer["data"]]
        assert files == draw(specs[answer["job_id"]])
        assert len(files) == 1 + i % 3


async def test_request_ids_are_kept_or_made(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json={"prompt": "bag"}, headers={"x-request-id": "my-id.1"})
    assert answer.headers["x-request-id"] == "my-id.1"
    strange = await client.post(PATH, json={"prompt": "?"}, headers={"x-request-id": "a b"})
    assert strange.headers["x-request-id"].startswith("req-")


async def test_the_api_is_documented(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    request = document["components"]["schemas"]["ImageRequest"]
    assert all("description" in field for field in request["properties"].values())
    assert (await client.post(PATH, json=request["example"])).status_code == 200
    assert "422" not in document["paths"][PATH]["post"]["responses"]
    assert (await client.get("/docs")).status_code == 200


async def test_one_image_of_a_larger_request_is_regenerated(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    fields = {"prompt": "bag", "seed": 7}
    whole = (await client.post(PATH, json={**fields, "n": 4})).json()
    third = (await client.post(PATH, json={**fields, "n": 1, "first_index": 2})).json()
    assert third["data"] == [whole["data"][2]]
    assert third["data"][0]["index"] == 2


async def test_a_strict_request_is_bound_to_a_fingerprint(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    answer = (await client.post(PATH, json={"prompt": "bag", "reproducibility": "strict"})).json()
    assert worker.claimed[0].job.bound_to == answer["fingerprint"] == "drawing"
    assert answer["reproducibility"] == "strict"
    await client.post(PATH, json={"prompt": "bag", "reproducibility": "fast"})
    await client.post(PATH, json={"prompt": "bag"})
    assert [claim.job.bound_to for claim in worker.claimed[1:]] == [None, None]


async def test_strict_results_are_shared_even_where_workers_differ(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    painting = FASHION.model_copy(update={"fingerprint": "painting", "strict_cost": None})
    await worker.registry.register(worker.info.model_copy(update={"id": "other", "models": (painting,)}))
    fields = {"prompt": "bag", "seed": 7, "reproducibility": "strict"}
    answers = [(await client.post(PATH, json=fields)).json() for _ in range(2)]
    assert [answer["cached"] for answer in answers] == [False, True]
    assert {answer["fingerprint"] for answer in answers} == {"drawing"}
