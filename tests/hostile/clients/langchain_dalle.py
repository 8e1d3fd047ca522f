"""Requests of LangChain's image wrapper and tool, which read addresses: URL as the only argument."""

import sys
import urllib.request

from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

wrapper = DallEAPIWrapper(model="fashion-mnist", api_key="any", base_url=f"{sys.argv[1]}/v1")
assert urllib.request.urlopen(wrapper.run("sneaker")).read().startswith(b"\x89PNG")

several = DallEAPIWrapper(model="fashion-mnist", api_key="any", base_url=f"{sys.argv[1]}/v1", n=2, quality="standard")
addresses = OpenAIDALLEImageGenerationTool(api_wrapper=several).run("Ankle boot").split("\n")
assert len(addresses) == 2
