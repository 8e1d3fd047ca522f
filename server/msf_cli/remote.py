"""`msf generate --url`: images of a running server, with nothing of the engine loaded here."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from PIL.Image import Image

CONNECT_TIMEOUT_S = 10.0  # the images themselves may take as long as they take


def generate_at(url: str, api_key: str | None, request: dict[str, Any]) -> tuple[list[Image], dict[str, Any]]:
    """The images, and what else the server answered. `request` is a body of `/v1/images/generations`.

    Raises ValueError with the server's own words where it refuses, or that it cannot be reached.
    """
    from PIL import Image

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    address = f"{url.rstrip('/')}/v1/images/generations"
    body = {name: value for name, value in request.items() if value is not None}
    try:
        answer = httpx.post(address, json=body, headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"--url {url}: {error or type(error).__name__}") from error
    if answer.is_error:
        raise ValueError(f"{url} answers {answer.status_code}: {_message(answer)}")
    made = answer.json()
    return [Image.open(io.BytesIO(b64decode(each["b64_json"]))) for each in made.pop("data")], made


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase  # something between us and the server answered
