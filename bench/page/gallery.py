"""Export of the page's gallery: an opening and thumbnails, made by the shipped models.

    msf serve &
    python -m bench.page.gallery --url http://127.0.0.1:8000

writes `NAME.json`, `NAME.opening.json` and `NAME.*.webp` for each model of gallery.toml to the page's folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tomllib
from base64 import b64decode
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from bench.datasets.emoji import STARTS

SPEC = Path(__file__).with_name("gallery.toml")
GALLERY = Path(__file__).parents[2] / "server/msf_server/page/gallery"
EMOJI_NAMES = Path(__file__).parents[2] / "server/msf_server/emoji_names.json"

THUMBNAIL_SEED = 1
TILE = 72  # pixels
COLUMNS = 10
WEBP_QUALITY = 80


async def write_gallery(client: httpx.AsyncClient, name: str, spec: dict[str, Any]) -> None:
    """Write the files of one model."""
    model = (await client.get(f"/v1/models/{name}")).raise_for_status().json()
    sets = [("Kinds", spec["kinds"]), ("Image names", dict.fromkeys(spec.get("names", ()), 0))]
    gallery = {
        "thumbnails": [
            {"title": title, "file": await _write_sprite(client, name, title, indices), "labels": list(indices)}
            for title, indices in sets
            if indices
        ],
        "columns": COLUMNS,
        "groups": _groups(model["labels"], list(spec["kinds"])),
    }
    _write_json(f"{name}.json", gallery)
    _write_json(f"{name}.opening.json", await _opening(client, name, spec["opening"]))


async def _write_sprite(client: httpx.AsyncClient, model: str, title: str, indices: dict[str, int]) -> str:
    """Write the thumbnails side by side; return the file's name."""
    limit = asyncio.Semaphore(8)

    async def generate(label: str, index: int) -> Image.Image:
        body = {"model": model, "prompt": label, "seed": THUMBNAIL_SEED, "first_index": index}
        async with limit:
            answer = (await client.post("/v1/images/generations", json=body)).raise_for_status().json()
        return Image.open(BytesIO(b64decode(answer["data"][0]["b64_json"]))).convert("RGB")

    images = await asyncio.gather(*(generate(label, index) for label, index in indices.items()))
    tile = min(TILE, images[0].width)
    sprite = Image.new("RGB", (COLUMNS * tile, -(-len(images) // COLUMNS) * tile), "white")
    for position, image in enumerate(images):
        row, column = divmod(position, COLUMNS)
        sprite.paste(image.resize((tile, tile), Image.Resampling.LANCZOS), (column * tile, row * tile))
    file = f"{model}.{title.rsplit(maxsplit=1)[-1].lower()}.webp"
    sprite.save(GALLERY / file, quality=WEBP_QUALITY, method=6)
    return file


def _groups(labels: list[str], kinds: list[str]) -> list[dict[str, Any]]:
    """Return the ids of the image names by kind, after a group of the kinds themselves."""
    ids = {label: index for index, label in enumerate(labels)}
    groups = defaultdict(list)
    starts, kind = dict(STARTS), ""
    for name in dict.fromkeys(json.loads(EMOJI_NAMES.read_text("utf-8")).values()):
        kind = starts.get(name.replace(" ", "_"), kind)
        if name in ids and name not in kinds:
            groups[kind].append(ids[name])
    names_by_kind = [{"title": kind, "ids": groups[kind]} for kind in kinds if groups[kind]]
    return [{"title": "Kinds", "ids": [ids[kind] for kind in kinds]}, *names_by_kind]


async def _opening(client: httpx.AsyncClient, model: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a finished job with the frames of each image: its previews, then the image."""
    body = {**fields, "model": model, "partial_images": 2, "output_format": "webp", "output_compression": WEBP_QUALITY}
    job = (await client.post("/v1/jobs", json={**body, "cache": False})).raise_for_status().json()
    events = (await client.get(f"/v1/jobs/{job['id']}/events")).raise_for_status().text
    frames: list[list[str]] = [[] for _ in range(fields["n"])]
    for event in (json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")):
        if event.get("type") == "partial_image":
            frames[event["index"]].append(event["b64_json"])
        elif event.get("status") == "succeeded":
            job = event
    for image in job["data"]:
        frames[image["index"]].append(image["b64_json"])
    return {"spec": job["spec"], "timings": job["timings"], "frames": frames}


def _write_json(name: str, content: object) -> None:
    (GALLERY / name).write_text(json.dumps(content, separators=(",", ":")) + "\n", "utf-8")


async def main() -> None:
    """Run the exporter."""
    parser = argparse.ArgumentParser(description="Write the page's gallery with a running service.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    arguments = parser.parse_args()
    GALLERY.mkdir(exist_ok=True)
    async with httpx.AsyncClient(base_url=arguments.url, timeout=120) as client:
        for name, spec in tomllib.loads(SPEC.read_text("utf-8")).items():
            await write_gallery(client, name, spec)
    print(f"{sum(file.stat().st_size for file in GALLERY.iterdir()):,} bytes in {GALLERY}")


if __name__ == "__main__":
    asyncio.run(main())
