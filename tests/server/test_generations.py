"""`POST /v1/images/generations`: images, defaults and formats."""

from __future__ import annotations

import asyncio
import base64
import io

import httpx
import pytest
from PIL import Image

from msf_server.orders import num_steps_by_quality
from msf_server.schemas.images import ImageRequest
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
        "denoise_ms": 0.0,
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
    assert again["data"][0]["b64_json"] == first["data"][0]["b64_json"]


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


async def test_any_size_is_taken_and_the_models_own_is_answered(client: httpx.AsyncClient) -> None:
    for size in ("1024x1024", "1792x1024", "1024x1536", "256x256", "1536x864", "32x32", "auto", None):
        answer = (await client.post(PATH, json={"prompt": "bag", "size": size})).json()
        assert answer["size"] == "32x32"
        assert Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"]))).size == (32, 32)
        job = (await client.post("/v1/jobs", json={"prompt": "bag", "size": size})).json()
        assert job["size"] == "32x32"
        assert (await client.get(f"/v1/jobs/{job['id']}")).json()["size"] == "32x32"
    listed = (await client.get("/v1/jobs")).json()["data"]
    assert {job["size"] for job in listed} == {"32x32"}


async def test_quality_chooses_the_number_of_steps(client: httpx.AsyncClient) -> None:
    [model] = (await client.get("/v1/models")).json()["data"]
    steps = {"auto": 12, "standard": 12, "medium": 12, "low": 6, "high": 24, "hd": 24, "xhigh": 36, "max": 48}
    assert model["num_steps_by_quality"] == steps
    for quality, num_steps in steps.items():
        answer = (await client.post(PATH, json={"prompt": "bag", "quality": quality})).json()
        assert answer["num_steps"] == num_steps
    answer = (await client.post(PATH, json={"prompt": "bag", "quality": "low", "num_steps": 50})).json()
    assert answer["num_steps"] == 50


def test_qualities_stay_within_the_limits_of_the_model() -> None:
    few = FASHION.model_copy(update={"default_num_steps": 2, "max_num_steps": 5})
    assert set(num_steps_by_quality(few).values()) == {2, 4, 5}


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 8, "guidance_scale": 3.0},
        {"num_inference_steps": 8, "guidance_scale": 3},
        {"num_inference_steps": 8.0, "num_steps": 8, "true_cfg_scale": 3.0},
        {"num_steps": 8, "cfg_scale": 3, "guidance_scale": 3.0, "true_cfg_scale": None, "num_inference_steps": None},
    ],
)
async def test_parameters_have_the_names_of_other_servers(client: httpx.AsyncClient, fields: dict[str, float]) -> None:
    answer = (await client.post(PATH, json={"prompt": "bag", "negative_prompt": "", **fields})).json()
    assert (answer["num_steps"], answer["guidance_scale"]) == (8, 3.0)


async def test_a_whole_number_may_be_written_as_a_fraction(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = (
        b'{"prompt": 8.0, "n": 2.0, "seed": 7e0, "num_steps": 10.0, "output_compression": 90.0, "partial_images": -0.0}'
    )
    assert (await client.post(PATH, content=body)).status_code == 200
    spec = worker.claimed[0].job.spec
    assert (spec.label, spec.num_samples, spec.seed, spec.num_steps) == (8, 2, 7, 10)


async def test_null_is_the_default_of_every_optional_field(client: httpx.AsyncClient) -> None:
    nulls = {name: None for name, field in ImageRequest.model_fields.items() if not field.is_required()}
    assert len(nulls) > 20
    nulls |= {"svg": None, "frame_count": None}  # of OpenAI's API alone
    answer = await client.post(PATH, json={"prompt": "bag", **nulls})
    assert answer.status_code == 200, answer.text
    tensor = {"name": "label", "shape": [1], "datatype": "INT32", "data": [1], "parameters": None}
    nothing = {"id": None, "parameters": None, "outputs": None}
    answer = await client.post("/v2/models/fashion/infer", json={"inputs": [tensor], **nothing})
    assert answer.status_code == 200, answer.text


async def test_the_identifier_of_a_user_takes_precedence(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    for fields, user in (
        ({"user": "ada", "safety_identifier": "hash"}, "hash"),
        ({"user": "ada", "safety_identifier": ""}, "ada"),
        ({"safety_identifier": "hash", "user": None}, "hash"),
    ):
        await client.post(PATH, json={"prompt": "bag", **fields})
        assert worker.claimed[-1].job.terms.user == user


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
    fields = {"prompt": "bag", "seed": 7, "response_format": "b64_json"}
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


@pytest.mark.parametrize(
    ("fields", "negative_label"),
    [({}, 9), ({"guidance_scale": 1.0}, None), ({"negative_prompt": ""}, None), ({"negative_prompt": 8}, 8)],
    ids=str,
)
async def test_a_negative_prompt_is_a_class_to_steer_away_from(
    client: httpx.AsyncClient, worker: FakeWorker, fields: dict[str, object], negative_label: int | None
) -> None:
    """It is part of what determines the bytes; without guidance it has no effect."""
    response = await client.post("/v1/jobs", json={"prompt": "bag", "negative_prompt": "ankle boot", **fields})
    assert response.json()["spec"]["negative_label"] == negative_label
