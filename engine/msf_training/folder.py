"""A folder of class folders as training data: `DIR/<class>/<image>`, of any size, decoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from msf_training.data import Split

logger = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NAMES_FILE = "names.json"  # in the folder; optional: pictures' own names, by their files' names up to VARIANT
VARIANT = "--"  # what follows it in a file's name tells variants of one picture apart: they are held out together


@dataclass(frozen=True)
class FolderData:
    """What is trained on, what is held out, and the classes' names in the order of their labels.

    `names`: own names of pictures that are trained on; `train_names` (len(train),): their numbers, -1 for none.
    """

    train: Split
    held_out: Split
    labels: tuple[str, ...]
    names: tuple[str, ...]
    train_names: torch.Tensor


def load_folder(
    folder: Path, cache: Path, *, size: int, channels: int, background: str, held_out_percent: int
) -> FolderData:
    """Decode the images into the file `cache` (unless they are there), and map it into memory.

    So data larger than memory can be trained on. Raises ValueError that names the folder or the file at fault.
    """
    labels = tuple(sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")))
    files = [(path, label) for label, name in enumerate(labels) for path in _images(folder / name)]
    if len(labels) < 2 or not files:
        raise ValueError(f"{folder} has {len(labels)} class folders with {len(files)} images; needed are two and more")
    empty = [name for label, name in enumerate(labels) if all(label != other for _, other in files)]
    if empty:
        raise ValueError(f"{folder / empty[0]} holds no image; allowed: {', '.join(sorted(SUFFIXES))}")
    shape = (len(files), channels, size, size)
    key = _key(folder, files, shape, background)
    key_file = cache.with_suffix(".json")
    if not cache.exists() or not key_file.exists() or json.loads(key_file.read_text()) != key:
        _decode(files, shape, background, cache)
        key_file.write_text(json.dumps(key))
    images = torch.from_numpy(np.lib.format.open_memmap(cache, mode="r+"))
    numbers = torch.tensor([label for _, label in files])
    held = torch.tensor([_is_held_out(path, held_out_percent) for path, _ in files])
    names, named = _names(folder, [path for (path, _), out in zip(files, held, strict=True) if not out], labels)
    return FolderData(_split(images, numbers, ~held), _split(images, numbers, held), labels, names, named)


def _names(folder: Path, files: list[Path], labels: tuple[str, ...]) -> tuple[tuple[str, ...], torch.Tensor]:
    """A name that is a class's too is left to the class."""
    listed = folder / NAMES_FILE
    try:
        told: object = json.loads(listed.read_text("utf-8")) if listed.exists() else {}
    except ValueError as error:
        raise ValueError(f"{listed} is not JSON: {error}") from error
    if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
        raise ValueError(f"{listed} must map files' names, up to {VARIANT!r}, to names of pictures")
    found = [told.get(_picture(path)) for path in files]
    names = tuple(sorted({name for name in found if name is not None and name not in labels}))
    numbers = {name: number for number, name in enumerate(names)}
    return names, torch.tensor([numbers.get(name, -1) for name in found])


def _picture(path: Path) -> str:
    return path.stem.split(VARIANT)[0]


def _split(images: torch.Tensor, labels: torch.Tensor, chosen: torch.Tensor) -> Split:
    return Split(images, labels, rows=chosen.nonzero().squeeze(1))


def _images(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)


def _is_held_out(path: Path, percent: int) -> bool:
    """By the name alone, so that a picture stays on its side when others come and go."""
    return int(hashlib.sha256(_picture(path).encode()).hexdigest(), 16) % 100 < percent


def _key(folder: Path, files: list[tuple[Path, int]], shape: tuple[int, ...], background: str) -> list[object]:
    seen = hashlib.sha256()
    for path, label in files:
        status = path.stat()
        seen.update(f"{path.relative_to(folder)} {label} {status.st_size} {status.st_mtime_ns}\n".encode())
    return [list(shape), background, seen.hexdigest()]


def _decode(files: list[tuple[Path, int]], shape: tuple[int, ...], background: str, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for row, (path, _) in enumerate(files):
        images[row] = _read(path, shape[1], shape[2], background)
        if (row + 1) % 10_000 == 0:
            logger.info("decoded %d of %d images", row + 1, len(files))
    images.flush()
    os.replace(partial, cache)
    logger.info("decoded %d images into %s", len(files), cache)


def _read(path: Path, channels: int, size: int, background: str) -> NDArray[np.uint8]:
    """The largest square in the middle, scaled: (channels, size, size)."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    ground = Image.new("RGBA", image.size, background)
    ground.alpha_composite(image)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = ground.crop((left, top, left + side, top + side)).convert("RGB" if channels == 3 else "L")
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)
