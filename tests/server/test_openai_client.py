"""OpenAI's own client, with only its base URL changed."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from msf_scheduler.jobs import JobError, Preview
from msf_server.api_keys import digest
from msf_server.settings import ServerSettings
from tests.server.conftest import listening, until
from tests.server.fake_worker import FakeWorker


@pytest.fixture
async def ai(live_url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{live_url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_images(ai: AsyncOpenAI) -> None:
    images = await ai.images.generate(model="fashion", prompt="bag", n=2, user="ada", size="auto", quality="high")
    assert images.data is not None
    assert [b64decode(image.b64_json or "")[1:4] for image in images.data] == [b"PNG", b"PNG"]

    encoded = await ai.images.generate(prompt="bag", response_format="b64_json")
    assert encoded.data is not None
    assert encoded.data[0].url is None


async def test_an_answer_serves_clients_that_expect_urls_and_those_that_expect_files(ai: AsyncOpenAI) -> None:
    images = await ai.images.generate(prompt="bag")
    assert images.data is not None
    async with httpx.AsyncClient() as anybody:
        file = (await anybody.get(images.data[0].url or "")).content
    assert file == b64decode(images.data[0].b64_json or "")


async def test_urls_work_without_a_key_until_they_expire(ai: AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"model": "fashion", "prompt": "bag", "extra_body": {"seed": 3, "first_index": 5}}
    inside = await ai.images.generate(**fields, n=2)
    outside = await ai.images.generate(**fields, n=2, response_format="url")
    assert inside.data is not None
    assert outside.data is not None
    async with httpx.AsyncClient() as anybody:
        for image, address in zip(inside.data, outside.data, strict=True):
            assert address.b64_json is None
            answer = await anybody.get(address.url or "")
            assert answer.content == b64decode(image.b64_json or "")
            assert answer.headers["content-type"] == "image/png"
        url = str(outside.data[0].url)
        for changed, code in (
            (url.replace("/5.png", "/6.png"), "invalid_signature"),
            (url.replace("expires=", "expires=1"), "invalid_signature"),
            (url[:-4] + "0000", "invalid_signature"),
            (f"{url}%C3%A9", "invalid_signature"),
        ):
            refused = await anybody.get(changed)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, code)


async def test_a_stream_with_previews(ai: AsyncOpenAI, worker: FakeWorker) -> None:
    worker.holding = True
    stream = await ai.images.generate(
        prompt="bag", n=2, stream=True, partial_images=1, extra_body={"first_index": 4}, quality="low"
    )
    await until(lambda: len(worker.claimed), 1)
    claim = worker.claimed[0]
    for sequence, index in ((1, 4), (2, 5)):
        await worker.leases.publish_preview(claim, sequence, Preview(index=index, number=0), b"base %d" % index)
    events = []
    async for event in stream:
        events.append(event)
        worker.holding = len(events) < 2
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + [
        "image_generation.completed"
    ] * 2
    first, *_, last = events
    assert first.type == "image_generation.partial_image"
    assert (first.partial_image_index, b64decode(first.b64_json)) == (0, b"base 4")
    assert last.type == "image_generation.completed"
    assert (last.size, last.quality, last.background, last.output_format) == ("32x32", "low", "auto", "png")
    assert last.usage.total_tokens == 0
    assert last.created_at > 1_700_000_000
    assert [event.model_extra["image_index"] for event in events if event.model_extra] == [0, 1, 0, 1]
    assert last.model_extra is not None
    fields = {"first_index": 4, "seed": last.model_extra["seed"]}
    plain = await ai.images.generate(prompt="bag", n=2, quality="low", extra_body=fields)
    assert plain.data is not None
    assert [image.b64_json for image in plain.data] == [event.b64_json for event in events[2:]]


async def test_a_stream_without_previews(ai: AsyncOpenAI) -> None:
    stream = await ai.images.generate(prompt="bag", stream=True)
    assert [event.type async for event in stream] == ["image_generation.completed"]


async def test_a_stream_reports_an_error_after_its_start(ai: AsyncOpenAI, worker: FakeWorker) -> None:
    worker.failure = JobError(code="non_finite", message="no number")
    stream = await ai.images.generate(prompt="bag", stream=True)
    with pytest.raises(openai.APIError, match="no number") as raised:
        await anext(aiter(stream))
    assert raised.value.code == "non_finite"


async def test_closing_a_stream_cancels_the_job(ai: AsyncOpenAI, live_url: str, worker: FakeWorker) -> None:
    worker.holding = True
    stream = await ai.images.generate(prompt="bag", stream=True)
    await until(lambda: len(worker.claimed), 1)
    await stream.close()
    await until(lambda: worker.lost, {worker.claimed[0].job.id})
    async with httpx.AsyncClient() as anybody:
        metrics = (await anybody.get(f"{live_url}/metrics")).text
    assert 'outcome="client_gone"' in metrics
    assert 'msf_clients_gone_total{model="fashion",version="1"} 1.0' in metrics


async def test_models(ai: AsyncOpenAI) -> None:
    assert [model.id async for model in ai.models.list()] == ["fashion:1"]
    assert (await ai.models.retrieve("fashion:1")).owned_by == "msf-serve"
    with pytest.raises(openai.NotFoundError, match="fashion"):
        await ai.models.retrieve("dalle")


async def test_exceptions_of_the_client(settings: ServerSettings, worker: FakeWorker, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[[keys]]\nname = "ada"\nsha256 = "{digest("msf_ada")}"\nrequests_per_minute = 5\n'
        f'[[keys]]\nname = "op"\nsha256 = "{digest("msf_op")}"\nscopes = ["admin"]\n'
    )
    async with listening(settings.model_copy(update={"api_keys_file": keys})) as url, AsyncExitStack() as clients:
        ada, op, nobody = [
            await clients.enter_async_context(AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0))
            for key in ("msf_ada", "msf_op", "x")
        ]
        with pytest.raises(openai.AuthenticationError):
            await nobody.images.generate(prompt="bag")
        with pytest.raises(openai.PermissionDeniedError):
            await op.images.generate(prompt="bag")
        with pytest.raises(openai.BadRequestError) as wrong:
            await ada.images.generate(prompt="hat")
        assert (wrong.value.param, wrong.value.code) == ("prompt", "unknown_class")
        with pytest.raises(openai.NotFoundError):
            await ada.images.generate(prompt="bag", model="dalle")
        ask: dict[str, Any] = {"extra_headers": {"Idempotency-Key": "one"}}
        await ada.images.generate(prompt="bag", **ask)
        with pytest.raises(openai.ConflictError) as conflict:
            await ada.images.generate(prompt="shirt", **ask)
        assert conflict.value.response.headers["x-should-retry"] == "false"
        worker.holding = True
        with pytest.raises(openai.InternalServerError) as late:
            await ada.images.generate(prompt="bag", extra_body={"timeout_s": 0.05})
        assert late.value.status_code == 504
        assert late.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(openai.RateLimitError) as limited:
            await ada.images.generate(prompt="bag")
        assert int(limited.value.response.headers["retry-after"]) >= 1


async def test_output_compression_is_the_quality_of_the_file(ai: AsyncOpenAI, worker: FakeWorker) -> None:
    for output_format, requested, stored in (
        ("webp", 40, 40),
        ("jpeg", 100, 100),
        ("png", 40, None),
        ("webp", None, None),
    ):
        fields = {"output_format": output_format, "output_compression": requested}
        await ai.images.generate(prompt="bag", extra_body=fields)
        assert worker.claimed[-1].job.spec.output_compression == stored
