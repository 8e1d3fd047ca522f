"""The Open Inference Protocol, with Triton's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from msf_scheduler.jobs import JobError, JobSpec, Priority
from msf_server.oip import tensors
from msf_server.settings import ServerSettings
from tests.server.conftest import listening, until
from tests.server.fake_worker import FASHION, LABELS, FakeWorker, draw

T = TypeVar("T")
Ask = Callable[..., Any]
DTYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP32": np.float32,
}


@pytest.fixture
def ask(live_url: str) -> Ask:
    """Call a blocking client method in a thread."""

    async def ask(method: str, *arguments: Any, **options: Any) -> Any:
        return await in_thread(live_url, lambda client: getattr(client, method)(*arguments, **options))

    return ask


async def in_thread(url: str, use: Callable[[triton.InferenceServerClient], T]) -> T:
    def work() -> T:
        with triton.InferenceServerClient(url.removeprefix("http://")) as client:
            return use(client)

    return await asyncio.to_thread(work)


def tensor(name: str, datatype: str, values: Any, *, binary: bool = True) -> triton.InferInput:
    array = np.array(values, dtype=DTYPES[datatype])
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def drawn(label: int, seed: int, index: int, num_steps: int = 12, guidance_scale: float = 2.0) -> NDArray[np.uint8]:
    """Return the worker's drawing for one row, in three equal channels."""
    spec = JobSpec(
        model="fashion",
        version="1",
        label=label,
        num_samples=1,
        seed=seed,
        first_index=index,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
    )
    grey = np.asarray(Image.open(io.BytesIO(draw(spec)[0])))
    return np.repeat(grey[..., None], 3, axis=-1)


async def test_server_and_model_metadata(ask: Ask) -> None:
    assert await ask("is_server_live")
    assert await ask("is_server_ready")
    server = await ask("get_server_metadata")
    assert server["name"] == "msf-serve"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"])
    model = await ask("get_model_metadata", "fashion")
    assert (model["name"], model["versions"]) == ("fashion", ["1"])
    assert model["inputs"][0] == {"name": "label", "datatype": "BYTES", "shape": [-1, 1]}
    assert model["outputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
    assert await ask("get_model_metadata", "fashion", "1") == model
    config = await ask("get_model_config", "fashion")
    assert [(each["name"], each["optional"]) for each in config["input"]][:2] == [("label", False), ("seed", True)]
    assert config["max_batch_size"] == 64
    assert tuple(json.loads(config["parameters"]["labels"]["string_value"])) == LABELS
    assert config["parameters"]["max_num_steps"]["string_value"] == "100"


async def test_a_model_is_ready_while_a_worker_serves_it(worker: FakeWorker, settings: ServerSettings) -> None:
    async def is_ready(version: str = "") -> bool:
        return await in_thread(url, lambda client: bool(client.is_model_ready("fashion", version)))

    async with listening(settings.model_copy(update={"worker_absence_s": 2.0})) as url:
        assert await is_ready()
        assert await is_ready("1")
        assert not await is_ready("2")
        await worker.registry.unregister(worker.info.id)
        await until(is_ready, False)


@pytest.mark.parametrize("sent_binary", [True, False])
@pytest.mark.parametrize("got_binary", [True, False])
@pytest.mark.parametrize(
    ("datatype", "labels"),
    [
        ("INT32", [3, 3, 7]),
        ("INT64", [[3], [3], [7]]),
        ("BYTES", ["dress", "Dress", "7"]),
        ("BYTES", [[b"3"], [b"3"], [b"7"]]),
    ],
)
async def test_rows_become_images(
    ask: Ask, datatype: str, labels: list[Any], sent_binary: bool, got_binary: bool
) -> None:
    result = await ask(
        "infer",
        "fashion",
        [
            tensor("label", datatype, labels, binary=sent_binary),
            tensor("seed", "INT64", [41], binary=sent_binary),
            tensor("guidance_scale", "FP32", [2.2], binary=sent_binary),
            tensor("num_steps", "INT32", [[9]], binary=sent_binary),
        ],
        outputs=[triton.InferRequestedOutput("images", binary_data=got_binary)],
        request_id="mine",
    )
    expected = [drawn(label, 41, row, 9) for row, label in enumerate([3, 3, 7])]
    np.testing.assert_array_equal(result.as_numpy("images"), expected)
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "fashion", "1")
    assert answer["parameters"]["seed"] == 41
    assert answer["parameters"]["num_steps"] == 9
    assert answer["parameters"]["guidance_scale"] == pytest.approx(2.2)
    assert "data" in answer["outputs"][0] or got_binary


async def test_rows_of_one_label_are_one_job(ask: Ask, worker: FakeWorker) -> None:
    await ask("infer", "fashion", [tensor("label", "INT32", [1, 1, 1, 2, 2, 1]), tensor("seed", "UINT64", [5])])
    specs = sorted((claim.job.spec for claim in worker.claimed), key=lambda spec: spec.first_index)
    assert [(spec.label, *spec.indices) for spec in specs] == [(1, 0, 1, 2), (2, 3, 4), (1, 5)]


async def test_a_row_with_its_own_seed_equals_a_single_request(ask: Ask) -> None:
    seeds = tensor("seed", "INT64", [5, 6])
    for label in (tensor("label", "INT32", [4]), tensor("label", "BYTES", ["coat", "COAT"])):
        result = await ask("infer", "fashion", [label, seeds], model_version="1")
        np.testing.assert_array_equal(result.as_numpy("images"), [drawn(4, 5, 0), drawn(4, 6, 0)])


async def test_first_index_selects_a_row_of_a_larger_request(ask: Ask) -> None:
    result = await ask(
        "infer",
        "fashion",
        [tensor("label", "INT32", [4, 5]), tensor("seed", "INT64", [5]), tensor("first_index", "INT32", [10])],
    )
    np.testing.assert_array_equal(result.as_numpy("images"), [drawn(4, 5, 10), drawn(5, 5, 11)])


async def test_a_random_seed_is_returned_in_the_parameters(ask: Ask) -> None:
    result = await ask("infer", "fashion", [tensor("label", "INT32", [4, 5])])
    seed = result.get_response()["parameters"]["seed"]
    np.testing.assert_array_equal(result.as_numpy("images"), [drawn(4, seed, 0), drawn(5, seed, 1)])


async def test_inference_and_image_requests_share_results(ask: Ask, live_url: str) -> None:
    result = await ask("infer", "fashion", [tensor("label", "INT32", [8, 8]), tensor("seed", "INT64", [5])])
    async with httpx.AsyncClient(base_url=live_url) as client:
        answer = (await client.post("/v1/images/generations", json={"prompt": "bag", "n": 2, "seed": 5})).json()
    assert answer["cached"]
    assert answer["seed"] == result.get_response()["parameters"]["seed"]


@pytest.mark.parametrize(
    ("negative", "prompt"),
    [
        (tensor("negative_label", "BYTES", ["COAT"]), "coat"),
        (tensor("negative_label", "INT32", [[4]]), "coat"),
        (tensor("negative_label", "INT32", [-1]), None),
        (tensor("negative_label", "BYTES", [""]), None),
    ],
)
async def test_a_negative_label_is_the_negative_prompt_of_an_image_request(
    ask: Ask, live_url: str, negative: triton.InferInput, prompt: str | None
) -> None:
    inputs = [tensor("label", "INT32", [8, 8]), tensor("seed", "INT64", [5]), negative]
    result = await ask("infer", "fashion", inputs, parameters={"cache": False})
    np.testing.assert_array_equal(result.as_numpy("images"), await image_request(live_url, negative_prompt=prompt))


async def image_request(url: str, **fields: object) -> list[NDArray[np.uint8]]:
    """Return the images of two bags with seed 5, requested under /v1, in three equal channels."""
    body = {"prompt": "bag", "n": 2, "seed": 5, "cache": False, **fields}
    async with httpx.AsyncClient(base_url=url) as client:
        answer = (await client.post("/v1/images/generations", json=body)).raise_for_status().json()
    files = [base64.b64decode(image["b64_json"]) for image in answer["data"]]
    return [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files]


async def test_priority_and_timeout_follow_triton(ask: Ask, worker: FakeWorker) -> None:
    await ask("infer", "fashion", [tensor("label", "INT32", [1])], priority=1, timeout=7_000_000)
    terms = worker.claimed[-1].job.terms
    assert (terms.priority, terms.timeout_s) == (Priority.HIGH, 7.0)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
async def test_a_request_may_be_compressed(ask: Ask, algorithm: str) -> None:
    result = await ask("infer", "fashion", [tensor("label", "INT32", [1])], request_compression_algorithm=algorithm)
    assert result.as_numpy("images").shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("inputs", "options", "status", "message"),
    [
        ([tensor("label", "INT32", [10])], {}, 400, "Invalid label: 10. Allowed: 0 to 9."),
        ([tensor("label", "BYTES", ["sneeker"])], {}, 400, 'Closest: "Sneaker"'),
        ([tensor("label", "FP32", [1.0])], {}, 400, "Invalid datatype of label"),
        ([tensor("label", "INT32", [[1, 2]])], {}, 400, "its shape is [1, 2]; allowed: [n], [n, 1]"),
        ([tensor("seed", "INT64", [1])], {}, 400, "The input label is missing"),
        ([tensor("label", "INT32", [1]), tensor("seed", "INT64", [-1])], {}, 400, "Invalid seed: -1"),
        ([tensor("label", "INT32", [1, 2]), tensor("seed", "INT64", [1, 2, 3])], {}, 400, "label has 2 rows"),
        ([tensor("label", "INT32", [1] * 65)], {}, 400, "The inputs have 65 rows. Allowed: 1 to 64."),
        ([tensor("label", "INT32", [1]), tensor("cfg", "FP32", [1])], {}, 400, "Unknown input"),
        ([tensor("label", "INT32", [1])], {"sequence_id": 3}, 400, "Unknown parameter"),
        ([tensor("label", "INT32", [1])], {"model_version": "9"}, 404, "Unknown model"),
        ([tensor("label", "INT32", [1])], {"outputs": [triton.InferRequestedOutput("x")]}, 400, "Invalid output"),
        (
            [tensor("label", "INT32", [1])],
            {"outputs": [triton.InferRequestedOutput("images", class_count=2)]},
            400,
            "Invalid output",
        ),
    ],
)
async def test_invalid_requests_are_explained(
    ask: Ask, inputs: list[triton.InferInput], options: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        await ask("infer", "fashion", inputs, **options)
    assert raised.value.status() == str(status)
    assert message in raised.value.message()


async def test_one_failure_cancels_the_rest(ask: Ask, worker: FakeWorker) -> None:
    worker.holding = True
    asking = asyncio.create_task(ask("infer", "fashion", [tensor("label", "INT32", [1, 2, 3])]))
    await until(lambda: len(worker.claimed), 3)
    await worker.leases.fail(worker.claimed[1], JobError(code="non_finite", message="sample 1 is not finite"))
    with pytest.raises(InferenceServerException, match="sample 1 is not finite"):
        await asking
    await until(lambda: worker.lost, {claim.job.id for claim in worker.claimed})


BODIES = {
    "no JSON": (b"{", {}, "The body is not valid JSON"),
    "no object": (b"[]", {}, "The body is not a JSON object"),
    "deep": (b"[" * 20000, {}, "The body is not valid JSON"),
    "header beyond the body": (b"{}", {"Inference-Header-Content-Length": "3"}, "Allowed: 0 to 2"),
    "header no number": (b"{}", {"Inference-Header-Content-Length": "-1"}, "Allowed: 0 to 2"),
    "not compressed": (b"{}", {"Content-Encoding": "gzip"}, "The body is not valid gzip"),
    "unknown compression": (b"{}", {"Content-Encoding": "br"}, "Allowed: gzip, deflate"),
}
TENSORS: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "unequal": ({"data": [1, 2]}, b"", "requires 1 elements, but it has 2"),
    "true is no number": ({"data": [True]}, b"", "true is not INT32"),
    "too deep": ({"data": [[[1]]]}, b"", "[1] is not INT32"),
    "nothing": ({}, b"", "neither data nor binary_data_size"),
    "too short": ({"parameters": {"binary_data_size": 8}}, b"1234", "4 bytes remain"),
    "too long": ({"parameters": {"binary_data_size": 4}}, b"12345", "belong to no input"),
    "half a number": ({"parameters": {"binary_data_size": 3}}, b"123", "not a whole number of INT32"),
    "a string beyond the end": (
        {"datatype": "BYTES", "parameters": {"binary_data_size": 5}},
        b"\x09\0\0\0x",
        "a string exceeds the end",
    ),
    "no UTF-8": ({"datatype": "BYTES", "parameters": {"binary_data_size": 5}}, b"\x01\0\0\0\xff", "not UTF-8"),
    "a lone surrogate": ({"datatype": "BYTES", "data": ["\ud800"]}, b"", "Unknown class"),
    "negative size": ({"parameters": {"binary_data_size": -1}}, b"", "0 bytes remain"),
}


@pytest.mark.parametrize("case", BODIES)
async def test_malformed_inference_bodies(client: httpx.AsyncClient, case: str) -> None:
    body, headers, message = BODIES[case]
    response = await client.post("/v2/models/fashion/infer", content=body, headers=headers)
    assert (response.status_code, response.json().keys()) == (415 if "unknown" in case else 400, {"error"})
    assert message in response.json()["error"]


@pytest.mark.parametrize("case", TENSORS)
async def test_malformed_tensors(client: httpx.AsyncClient, case: str) -> None:
    fields, blob, message = TENSORS[case]
    header = json.dumps({"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", **fields}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    response = await client.post("/v2/models/fashion/infer", content=header + blob, headers=length)
    assert (response.status_code, response.json().keys()) == (400, {"error"})
    assert message in response.json()["error"]


async def test_a_decompression_bomb_is_refused(client: httpx.AsyncClient) -> None:
    bomb = zlib.compress(bytes(30_000_000))
    response = await client.post("/v2/models/fashion/infer", content=bomb, headers={"Content-Encoding": "deflate"})
    assert response.status_code == 413


async def test_large_outputs_are_bytes_only(ask: Ask, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_JSON_ELEMENTS", 2 * 32 * 32 * 3)
    label = tensor("label", "BYTES", ["bag"] * 3)
    with pytest.raises(InferenceServerException, match=r"9216 numbers in JSON\. Allowed: 6144 .*binary_data_output"):
        await ask("infer", "fashion", [label], outputs=[triton.InferRequestedOutput("images", binary_data=False)])
    assert worker.claimed == []
    assert (await ask("infer", "fashion", [label])).as_numpy("images").shape == (3, 32, 32, 3)


async def test_cross_origin_requests_without_preflight_are_refused(
    client: httpx.AsyncClient, worker: FakeWorker
) -> None:
    body = b'{"inputs": [{"name": "label", "shape": [1], "datatype": "INT32", "data": [1]}]}'
    statuses = [
        (await client.post("/v2/models/fashion/infer", content=body, headers=headers)).status_code
        for headers in (
            {"Origin": "https://evil.example", "Content-Type": "text/plain"},
            {"Origin": "https://evil.example"},
            {"Origin": "https://good.example", "Content-Type": "application/json; charset=utf-8"},
            {},
        )
    ]
    assert statuses == [415, 415, 200, 200]


async def test_a_repeated_idempotency_key_generates_nothing_new(client: httpx.AsyncClient, worker: FakeWorker) -> None:
    body = {"inputs": [{"name": "label", "shape": [3], "datatype": "INT32", "data": [1, 2, 1]}]}
    answers = [
        (await client.post("/v2/models/fashion/infer", json=body, headers={"Idempotency-Key": "mine"})).json()
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    assert len(worker.claimed) == 3


async def test_statistics_count_requests_and_images(ask: Ask, worker: FakeWorker) -> None:
    same = [tensor("label", "INT32", [1, 1, 2]), tensor("seed", "INT64", [5])]
    for _ in range(2):
        await ask("infer", "fashion", same)
    with pytest.raises(InferenceServerException):
        await ask("infer", "fashion", [tensor("label", "INT32", [99])])
    for arguments in (("fashion", "1"), ("fashion",), ()):
        [stats] = (await ask("get_inference_statistics", *arguments))["model_stats"]
        assert (stats["name"], stats["version"]) == (FASHION.name, FASHION.version)
        assert (stats["inference_count"], stats["execution_count"]) == (3, 2)
        assert stats["last_inference"] > 1_700_000_000_000
        times = stats["inference_stats"]
        assert (times["success"]["count"], times["fail"]["count"], times["cache_hit"]["count"]) == (2, 1, 2)
        assert times["queue"] == {"count": 2, "ns": 8_000_000}
        assert times["compute_infer"] == {"count": 2, "ns": 105_000_000}
        assert times["compute_output"] == {"count": 2, "ns": 28_000_000}
        assert times["success"]["ns"] > 0


async def test_errors_have_the_shape_of_the_protocol(client: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("GET", "/v2/models/vehicles", 404),
        ("GET", "/v2/models/fashion/versions/7/config", 404),
        ("GET", "/v2/models/vehicles/stats", 404),
        ("GET", "/v2/models/fashion/infer", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/nothing", 404),
    ):
        response = await client.request(method, path)
        assert response.status_code == status, path
        assert response.json().keys() == {"error"}
