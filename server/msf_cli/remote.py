"""Images from a running server, without the engine: `msf generate --url`."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from PIL.Image import Image

TIMEOUT = httpx.Timeout(None, connect=10.0)  # generation may take long


def request_images(url: str, api_key: str | None, request: dict[str, Any]) -> tuple[list[Image], dict[str, Any]]:
    """Return the images and the other fields of the answer to a `/v1/images/generations` request.

    Raises ValueError with the server's message, or when the server cannot be reached.
    """
    from PIL import Image

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    endpoint = f"{url.rstrip('/')}/v1/images/generations"
    body = {name: value for name, value in request.items() if value is not None}
    try:
        response = httpx.post(endpoint, json=body, headers=headers, timeout=TIMEOUT)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"--url {url}: {error or type(error).__name__}") from error
    if response.is_error:
        raise ValueError(f"{url} answers {response.status_code}: {_message(response)}")
    answer = response.json()
    return [Image.open(io.BytesIO(b64decode(image["b64_json"]))) for image in answer.pop("data")], answer


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase  # the answer of a proxy
