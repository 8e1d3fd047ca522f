"""Requests of LiteLLM: URL as the only argument."""

import asyncio
import base64
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise its import downloads prices

import litellm

TO = {"model": "openai/fashion-mnist", "api_base": f"{sys.argv[1]}/v1", "api_key": "any"}

answer = litellm.image_generation(prompt="sneaker", **TO)
assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")
answer = litellm.image_generation(prompt="sneaker", n=2, size="1024x1024", quality="low", user="ada", **TO)
assert len(answer.data) == 2
answer = asyncio.run(litellm.aimage_generation(prompt="Ankle-boot", size="auto", **TO))
assert len(answer.data) == 1
