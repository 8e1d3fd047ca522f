"""Requests of OpenAI's Python client, from its first version with this interface on: URL as the only argument."""

import base64
import sys
import urllib.request
from typing import Any

import openai

MODERN = not openai.__version__.startswith("1.0.")
MODEL: dict[str, Any] = {"model": "fashion-mnist"} if MODERN else {}  # 1.0 sent no model with an image request

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="any", max_retries=0)


def generate(**fields: Any) -> Any:
    return client.images.generate(**{"prompt": "sneaker", **MODEL, **fields})


for size in ("1024x1024", "512x512", "256x256"):
    answer = generate(n=2, size=size)
    assert len(answer.data) == 2
    assert answer.size == "32x32"
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")
    assert urllib.request.urlopen(answer.data[0].url).read() == base64.b64decode(answer.data[0].b64_json)
assert generate(response_format="b64_json").data[0].url is None
assert generate(response_format="url").data[0].b64_json is None
assert len(generate(n=None, size=None, response_format=None, user="ada").data) == 1
assert generate(prompt="Ankle-Boot", extra_body={"num_inference_steps": 4}).num_steps == 4
assert [model.id for model in client.models.list()] == ["fashion-mnist:1"]
refusal = ""
try:
    generate(size="banana")
except openai.BadRequestError as error:
    refusal = str(error)
assert "WIDTHxHEIGHT" in refusal
if MODERN:
    for quality in ("standard", "hd", "low", "medium", "high", "auto", None):
        assert generate(quality=quality, size="1792x1024", style="vivid").data
    fields: dict[str, Any] = {"output_format": "webp", "output_compression": 80, "background": "transparent"}
    fields |= {"moderation": "low", "complexity": "low", "safety_identifier": "hash"}
    answer = generate(size="auto", quality="low", **fields)
    assert base64.b64decode(answer.data[0].b64_json)[8:12] == b"WEBP"
    events = list(generate(stream=True, partial_images=1, size="1536x864", quality="low"))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    assert events[-1].size == "32x32"
