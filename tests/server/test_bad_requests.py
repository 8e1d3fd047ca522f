"""Invalid requests get one error shape that says what is allowed, and do not affect later requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from msf_server.errors import quoted
from msf_server.settings import ServerSettings
from tests.server.conftest import client_of, serving
from tests.server.fake_worker import FakeWorker

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
NO_SIZES = (
    "banana",
    "-1x5",
    "0x0",
    "0x5",
    "01x1",
    "1024",
    "1024x",
    "1024x1024x3",
    "1024x1024\n",
    "",
    " auto",
    32,
    [32, 32],
)


async def refused(response: httpx.Response, status: int, client: httpx.AsyncClient) -> dict[str, Any]:
    """Return the error of an answer in OpenAI's shape; check that a valid request still succeeds."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (await client.post(PATH, json={"prompt": "bag"})).status_code == 200
    return error


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("n", 0, ["0", "1 to 64"]),
        ("n", 65, ["65", "1 to 64"]),
        ("n", -1, ["-1", "1 to 64"]),
        ("n", 10**400, ["1 to 64"]),
        ("n", True, ["true", "an integer from 1"]),
        ("n", "4", ['"4"', "an integer from 1"]),
        ("n", 1.5, ["1.5", "an integer from 1"]),
        ("n", [1], ["[1]", "an integer from 1"]),
        ("n", float("nan"), ["NaN", "an integer from 1"]),
        ("seed", -1, ["-1", "0 to 9007199254740991"]),
        ("seed", 2**53, ["9007199254740992", "0 to 9007199254740991"]),
        ("seed", False, ["false", "an integer from 0"]),
        ("seed", "7", ['"7"', "an integer from 0"]),
        ("num_steps", 1, ["1", "2 to 100"]),
        ("num_steps", 101, ["101", "2 to 100"]),
        ("num_steps", 12.5, ["12.5", "an integer from the model's min_num_steps"]),
        ("guidance_scale", -0.1, ["-0.1", "0.0 to 10.0"]),
        ("guidance_scale", 10.01, ["10.01", "0.0 to 10.0"]),
        ("guidance_scale", True, ["true", "a number from 0"]),
        ("guidance_scale", "2", ['"2"', "a number from 0"]),
        ("guidance_scale", float("nan"), ["NaN", "a number from 0"]),
        ("guidance_scale", float("inf"), ["Infinity", "a number from 0"]),
        ("guidance_scale", -float("inf"), ["-Infinity", "a number from 0"]),
        ("response_format", "raw", ['"raw"', '"b64_json"', '"url"']),
        ("output_format", "gif", ['"gif"', '"png", "webp" or "jpeg"']),
        ("output_format", 3, ["3", '"png", "webp" or "jpeg"']),
        *(("size", size, [json.dumps(size), '"auto" or WIDTHxHEIGHT']) for size in NO_SIZES),
        ("quality", 1, ["1", '"low", "medium", "high"']),
        ("quality", "ultra", ['"ultra"', '"low", "medium", "high"']),
        ("num_inference_steps", 1, ["1", "2 to 100"]),
        ("num_inference_steps", 101, ["101", "2 to 100"]),
        ("cfg_scale", 10.5, ["10.5", "0.0 to 10.0"]),
        ("negative_prompt", "blurry", ['"blurry"', "unknown class", "10 class names"]),
        ("n", 1e300, ["1 to 64"]),
        ("seed", float("-inf"), ["-Infinity", "an integer from 0"]),
        ("background", {}, ["{}", "a string"]),
        ("style", [], ["[]", "a string"]),
        ("moderation", True, ["true", "a string"]),
        ("output_compression", 101, ["101", "0 to 100"]),
        ("user", 5, ["5", "a string"]),
        ("model", 5, ["5", '"name"']),
        ("prompt", 7.5, ["7.5", "as a string"]),
        ("prompt", True, ["true", "as a string"]),
        ("prompt", 1e300, ["10000", "as a string"]),
        ("prompt", None, ["null", "a class name"]),
        ("prompt", "", ['""', "a class name"]),
        ("prompt", "x" * 201, ['"xxx', "a class name"]),
        ("prompt", "\ud800", ["a class name"]),
    ],
)
async def test_an_invalid_value_is_named(
    client: httpx.AsyncClient, field: str, value: object, words: list[str]
) -> None:

    body = json.dumps({"prompt": "bag", field: value})  # httpx itself would refuse NaN
    error = await refused(await client.post(PATH, content=body, headers=JSON), 400, client)
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    for word in (field, *words):
        assert word in error["message"]


async def test_an_unknown_class_names_the_closest(client: httpx.AsyncClient) -> None:
    error = await refused(await client.post(PATH, json={"prompt": "shrt"}), 400, client)
    assert (error["code"], error["param"]) == ("unknown_class", "prompt")
    assert error["message"] == (
        'Unknown class "shrt" for model fashion. Allowed: one of its 10 class names, or an id from 0 to 9. '
        'Closest: "Shirt", "T-shirt".'
    )


@pytest.mark.parametrize("prompt", ["10", "-1", "²"])
async def test_an_unknown_class_id_is_refused(client: httpx.AsyncClient, prompt: str) -> None:
    error = await refused(await client.post(PATH, json={"prompt": prompt}), 400, client)
    assert (error["code"], error["param"]) == ("unknown_class", "prompt")
    assert f"Unknown class {json.dumps(prompt)}" in error["message"]
    assert "an id from 0 to 9" in error["message"]


async def test_an_unknown_field_is_named_with_the_known_ones(client: httpx.AsyncClient) -> None:
    error = await refused(await client.post(PATH, json={"prompt": "bag", "guidance": 2}), 400, client)
    assert error["code"] == "unknown_field"
    assert error["param"] == "guidance"
    assert "Did you mean guidance_scale?" in error["message"]
    assert "num_steps" in error["message"]


async def test_all_invalid_fields_are_reported_together(client: httpx.AsyncClient) -> None:
    error = await refused(await client.post(PATH, json={"n": "x", "seed": "y"}), 400, client)
    for words in ("prompt is missing", "Invalid n", "Invalid seed"):
        assert words in error["message"]


@pytest.mark.parametrize("model", ["vehicles", "fashion:2", "fashion:", ":1", "", "../etc/passwd"])
async def test_an_unknown_model_is_answered_with_the_known_ones(client: httpx.AsyncClient, model: str) -> None:
    error = await refused(await client.post(PATH, json={"prompt": "bag", "model": model}), 404, client)
    assert error["code"] == "model_not_found"
    assert "fashion:1" in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"prompt=bag",
        b"\xff\xfe{}",
        b'{"prompt": "\xe9"}',
        b"[]",
        b'"bag"',
        b"null",
        b"7",
        b"[" * 30_000,
        b'{"n": ' + b"1" * 5_000 + b"}",
        b"\x00",
    ],
)
async def test_a_body_must_be_a_json_object(client: httpx.AsyncClient, body: bytes) -> None:
    error = await refused(await client.post(PATH, content=body, headers=JSON), 400, client)
    assert error["code"] == "invalid_json"
    assert "body" in error["message"]


UNSUPPORTED_TYPES = (
    *("text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "application/octet-stream"),
    *("multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/json; charset=latin-1"),
    *("json", "/", ";", "application/json, text/plain", "text/json", "caf\xe9"),
)
SUPPORTED_TYPES = (
    *("application/json; charset=utf-8", "Application/JSON;charset=UTF-8", 'application/json; charset="utf8"'),
    *("application/vnd.api+json", "application/json; odata=verbose", None),
)


async def test_an_unsupported_content_type_is_named(client: httpx.AsyncClient) -> None:
    for content_type in UNSUPPORTED_TYPES:
        headers = {"Content-Type": content_type.encode("latin-1")}
        response = await client.post(PATH, content=b'{"prompt": "bag"}', headers=headers)  # type: ignore[arg-type]
        assert response.status_code == 415, content_type
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_media_type", "Content-Type")
        assert "Allowed: application/json, with charset utf-8 if any." in error["message"]


async def test_json_may_have_a_charset_a_byte_order_mark_or_no_content_type(client: httpx.AsyncClient) -> None:
    for content_type in SUPPORTED_TYPES:
        for mark in (b"", b"\xef\xbb\xbf"):
            headers = {"Content-Type": content_type} if content_type else {}
            answer = await client.post(PATH, content=mark + b'{"prompt": "bag"}', headers=headers)
            assert answer.status_code == 200, answer.text


async def test_a_web_page_must_name_the_content_type(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, content=b'{"prompt": "bag"}', headers={"Origin": "https://x.example"})
    await refused(answer, 415, client)


@pytest.mark.parametrize("body", ['{"prompt": "bag", "n": 1, "n": 2}', '{"prompt": "bag", "x": {"a": 1, "a": 1}}'])
async def test_a_field_that_occurs_twice(client: httpx.AsyncClient, body: str) -> None:
    error = await refused(await client.post(PATH, content=body.encode(), headers=JSON), 400, client)
    assert error["code"] == "invalid_json"
    assert "occurs twice" in error["message"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "latin-1"])
async def test_json_in_another_encoding(client: httpx.AsyncClient, encoding: str) -> None:
    body = '{"prompt": "bäg"}'.encode(encoding)
    error = await refused(await client.post(PATH, content=body, headers=JSON), 400, client)
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("names", "values"), [(("num_steps", "num_inference_steps"), (8, 9)), (("guidance_scale", "cfg_scale"), (1.5, 2))]
)
async def test_two_names_of_a_parameter_with_different_values(
    client: httpx.AsyncClient, names: tuple[str, str], values: tuple[float, float]
) -> None:
    body = {"prompt": "bag", **dict(zip(names, values, strict=True))}
    error = await refused(await client.post(PATH, json=body), 400, client)
    assert error["param"] == names[1]
    assert f"Allowed: {values[0]}, as {names[0]} is the same parameter." in error["message"]


async def chunks(num_bytes: int) -> AsyncIterator[bytes]:
    for _ in range(num_bytes // 1024):
        yield b" " * 1024


async def test_a_large_body_is_refused(client: httpx.AsyncClient) -> None:
    error = await refused(await client.post(PATH, content=b" " * 70_000, headers=JSON), 413, client)
    assert error["code"] == "body_too_large"
    assert "65536 bytes" in error["message"]


async def test_a_large_body_of_unknown_length_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(PATH, content=chunks(70 * 1024), headers=JSON)
    assert "content-length" not in response.request.headers
    await refused(response, 413, client)


async def test_a_large_body_is_refused_over_a_socket(live_url: str) -> None:
    async with httpx.AsyncClient(base_url=live_url) as client:
        await refused(await client.post(PATH, content=chunks(70 * 1024), headers=JSON), 413, client)


async def test_a_wrong_method_is_answered_with_allow(client: httpx.AsyncClient) -> None:
    response = await client.get(PATH)
    error = await refused(response, 405, client)
    assert response.headers["allow"] == "POST"
    assert error["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing", "/page/nothing.js", "/page/../app.py", "/v1/models/x"])
async def test_an_unknown_path(client: httpx.AsyncClient, path: str) -> None:
    await refused(await client.get(path), 404, client)


async def test_under_v2_errors_have_the_open_inference_shape(client: httpx.AsyncClient) -> None:
    response = await client.get("/v2/nothing")
    assert response.status_code == 404
    assert isinstance(response.json()["error"], str)


async def test_an_unexpected_exception_reveals_no_internals(
    app: FastAPI, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is 1234")

    response = await client.get("/broken")
    error = await refused(response, 500, client)
    assert error["type"] == "server_error"
    assert "1234" not in response.text
    assert "the password is 1234" in caplog.text
    assert response.headers["x-request-id"] in caplog.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"n": 13, "num_steps": 5},
            "Invalid n: 13. Allowed with num_steps 5: at most 12, as n x num_steps must not exceed 64.",
        ),
        ({"n": 6}, "Invalid n: 6. Allowed with num_steps 12: at most 5, as n x num_steps must not exceed 64."),
        (
            {"num_steps": 65},
            "Invalid num_steps: 65. Allowed with n 1: at most 64, as n x num_steps must not exceed 64.",
        ),
    ],
)
async def test_the_sample_steps_of_a_request_are_limited(
    settings: ServerSettings, worker: FakeWorker, body: dict[str, int], message: str
) -> None:
    async with serving(settings.model_copy(update={"max_sample_steps": 64})) as app, client_of(app) as client:
        error = await refused(await client.post(PATH, json={"prompt": "bag", **body}), 400, client)
        assert (error["param"], error["message"]) == (next(iter(body)), message)


@pytest.mark.parametrize("path", [PATH, "/v1/jobs", "/v2/models/fashion/infer"])
async def test_thousands_of_fields_are_refused_in_a_few_words(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.post(path, json={f"num_step{number}": 1 for number in range(3000)})
    assert answer.status_code == 400
    assert "an object has 3000 fields, and at most 64 are allowed" in answer.text
    assert len(answer.text) < 300


def test_a_value_is_quoted_as_far_as_it_is_shown() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert quoted(nested) == "[" * 77 + "..."
    assert quoted({"a": [1, None, "é"]}) == '{"a": [1, null, "\\u00e9"]}'
    assert len(quoted("x" * 10**6)) == 80
