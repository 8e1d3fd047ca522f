"""Records of what must not change by accident: images of the shipped models, and the names that users rely on.

`python -m tests.system.recording` writes them again after an intended change.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from bench.local_stack import TIMEOUT_S, free_port
from msf_cli.main import main as cli
from msf_cli.settings import Settings
from msf_server.app import create_app
from msf_server.settings import ServerSettings
from tests.cli.support import msf, service_settings

RECORDS = Path(__file__).parent / "records"
MODEL_REPO = Path(__file__).parents[2] / "model_repo"
PROSE = {"description", "summary", "title", "example", "examples"}

Json = Any

_EMOJI: list[dict[str, Json]] = [
    {"prompt": "red apple", "seed": 7},
    {"prompt": "heart", "seed": 0, "n": 3},
    {"prompt": "face", "seed": 1, "num_steps": 5},
    {"prompt": "clock", "seed": 2**53 - 1, "num_steps": 2},
    {"prompt": "flag", "seed": 3, "guidance_scale": 1.0},
    {"prompt": "fruit", "seed": 4, "guidance_scale": 4.0, "num_steps": 8},
    {"prompt": "3", "seed": 5, "n": 2, "first_index": 9},
    {"prompt": "tired face", "seed": 6, "reproducibility": "strict"},
    {"prompt": "red apple", "seed": 8, "num_steps": 4, "stream": True, "partial_images": 2},
    {"prompt": "red apple", "seed": 7, "num_steps": 4, "output_format": "webp"},
]
_FASHION: list[dict[str, Json]] = [
    {"prompt": "sneaker", "seed": 7},
    {"prompt": "bag", "seed": 0, "n": 4},
    {"prompt": "coat", "seed": 1, "num_steps": 50},
    {"prompt": "dress", "seed": 2, "num_steps": 2},
    {"prompt": "trouser", "seed": 3, "num_steps": 3, "guidance_scale": 1.0},
    {"prompt": "9", "seed": 4, "guidance_scale": 3.5},
    {"prompt": "sandal", "seed": 5, "n": 2, "first_index": 63},
    {"prompt": "shirt", "seed": 6, "reproducibility": "strict", "n": 2},
    {"prompt": "pullover", "seed": 9, "num_steps": 8, "stream": True, "partial_images": 3},
    {"prompt": "sneaker", "seed": 7, "output_format": "webp"},
]
# Requests for several samples are strict: otherwise their bytes may depend on how the samples are batched.
REQUESTS = [
    {"model": model, **({"reproducibility": "strict"} if "n" in request else {}), **request}
    for model, requests in (("emoji", _EMOJI), ("fashion-mnist", _FASHION))
    for request in requests
]


@contextlib.contextmanager
def service(folder: Path, **settings: str) -> Iterator[str]:
    """Yield the URL of `msf serve` with the shipped models, in eager float32 with one thread and batches of one size.

    Of several sizes, kernels may round an image in different ways: what is recorded must not depend on which was used.
    """
    defaults = service_settings(MODEL_REPO, folder / "cache", folder / "data") | {"MSF_BUCKETS": "4"}
    with msf("serve", settings=defaults | settings, log=folder / "log") as running:
        yield running.url()


def images(url: str, request: dict[str, Json]) -> list[NDArray[np.uint8]]:
    """Return the pixels of a request's images, in order; a stream's previews come before its image."""
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        answer = client.post("/v1/images/generations", json=request)
    assert answer.status_code == 200, answer.text
    if request.get("stream"):
        frames = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    else:
        frames = answer.json()["data"]
    files = [frame["b64_json"] for frame in frames if "b64_json" in frame]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]


def processor() -> str:
    """Return what the last bits of eager float32 depend on."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.partition('+')[0]}"


def openapi() -> Json:
    """Return the OpenAPI document without its prose and version."""
    document = create_app(ServerSettings(redis_url="redis://127.0.0.1:1")).openapi()
    document["info"].pop("version")
    return _without_prose(document)


def _without_prose(node: Json, *, names: bool = False) -> Json:
    """Remove prose; with `names`, the keys of `node` are names and not OpenAPI's keywords."""
    if isinstance(node, dict):
        return {
            key: _without_prose(value, names=key in ("properties", "schemas", "paths"))
            for key, value in sorted(node.items())
            if names or key not in PROSE
        }
    return [_without_prose(each) for each in node] if isinstance(node, list) else node


def commands() -> Json:
    """Return every command of the CLI with its options."""

    def described(command: click.Command) -> Json:
        if isinstance(command, click.Group):
            context = click.Context(command)
            subcommands = {name: command.get_command(context, name) for name in command.list_commands(context)}
            return {name: described(each) for name, each in subcommands.items() if each}
        return {
            parameter.name: [*sorted(parameter.opts), parameter.type.name]
            for parameter in command.params
            if parameter.name
        }

    return described(cli)


def variables() -> Json:
    """Return the environment variables with their defaults, except defaults that depend on the machine."""
    return {
        f"MSF_{name}".upper(): None if field.default_factory else str(field.default)
        for name, field in sorted(Settings.model_fields.items())
    }


def metrics(url: str) -> Json:
    """Return the type and labels of every metric that a process serves to Prometheus."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text)
    return {
        family.name: [family.type, *sorted({label for sample in family.samples for label in sample.labels} - {"le"})]
        for family in families
        if family.name.startswith("msf_")
    }


def save(name: str, record: Json) -> None:
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def load(name: str) -> Json:
    return json.loads((RECORDS / f"{name}.json").read_text())


def pixels_file(number: int, index: int) -> Path:
    return RECORDS / "images" / f"{number:02}-{index}.png"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    (RECORDS / "images").mkdir(parents=True, exist_ok=True)
    save("openapi", openapi())
    save("commands", commands())
    save("variables", variables())
    worker_port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder), MSF_WORKER_METRICS_PORT=str(worker_port)) as url,
    ):
        for number, request in enumerate(REQUESTS):
            for index, pixels in enumerate(images(url, request)):
                Image.fromarray(pixels).save(pixels_file(number, index), optimize=True)
        save("metrics", {"server": metrics(url), "worker": metrics(f"http://127.0.0.1:{worker_port}")})
    save("processor", processor())


if __name__ == "__main__":
    main()
