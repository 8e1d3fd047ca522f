"""Class folders as training data: `DIR/<class>/<image>`, images of any size, decoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from msf_training.dataset import Split

logger = logging.getLogger(__name__)

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NAMES_FILE = "names.json"  # optional, in DIR: image names by file stem up to VARIANT
VARIANT = "--"  # separates a variant's suffix in a file stem; all variants of an image are held out together


@dataclass(frozen=True)
class ImageFormat:
    """Size in pixels and number of channels that images are converted to; `background` lies under transparent ones."""

    size: int
    channels: int
    background: str


@dataclass(frozen=True)
class ClassFolders:
    """Training and held-out images; `labels` are the class names, in the order of their numbers.

    `image_names` are the names of training images, `name_indices` (len(train),) their indices, -1 for unnamed images.
    """

    train: Split
    held_out: Split
    labels: tuple[str, ...]
    image_names: tuple[str, ...]
    name_indices: Tensor


def load_class_folders(folder: Path, cache: Path, image_format: ImageFormat, held_out_percent: int = 0) -> ClassFolders:
    """Decode the images below `folder` into the file `cache`, unless it is current, and map it into memory.

    Training data may be larger than memory. Raises ValueError that names the folder or the file at fault.
    """
    labels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    files = {name: _image_files(folder / name) for name in labels}
    paths = [path for name in labels for path in files[name]]
    if len(labels) < 2 or not paths:
        raise ValueError(
            f"{folder} has {len(labels)} class folders with {len(paths)} images; at least 2 folders are needed"
        )
    for name, class_files in files.items():
        if not class_files:
            raise ValueError(f"{folder / name} holds no image; allowed: {', '.join(sorted(SUFFIXES))}")
    images = torch.from_numpy(_decoded(folder, paths, image_format, cache))
    numbers = torch.arange(len(labels)).repeat_interleave(torch.tensor([len(files[name]) for name in labels]))
    is_held_out = torch.tensor([_is_held_out(path, held_out_percent) for path in paths])
    train_paths = [path for path, held_out in zip(paths, is_held_out, strict=True) if not held_out]
    image_names, name_indices = _read_names(folder / NAMES_FILE, train_paths, labels)
    train, held_out = (Split(images, numbers, rows.nonzero().squeeze(1)) for rows in (~is_held_out, is_held_out))
    return ClassFolders(train, held_out, labels, image_names, name_indices)


def _read_names(file: Path, paths: Sequence[Path], labels: tuple[str, ...]) -> tuple[tuple[str, ...], Tensor]:
    """Return the distinct names, without those that are a class's too, and the index of each path's name."""
    try:
        names: object = json.loads(file.read_text("utf-8")) if file.exists() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{file} must map file stems, up to {VARIANT!r}, to image names")
    by_path = [names.get(_stem(path)) for path in paths]
    distinct = tuple(sorted({name for name in by_path if name is not None and name not in labels}))
    indices = {name: index for index, name in enumerate(distinct)}
    return distinct, torch.tensor([indices.get(name, -1) for name in by_path])


def _stem(path: Path) -> str:
    return path.stem.split(VARIANT)[0]


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _is_held_out(path: Path, percent: int) -> bool:
    """Decide by the stem alone, so that an image stays on its side when others are added or removed."""
    return int(hashlib.sha256(_stem(path).encode()).hexdigest(), 16) % 100 < percent


def _decoded(folder: Path, paths: Sequence[Path], image_format: ImageFormat, cache: Path) -> NDArray[np.uint8]:
    """Return the images (N, C, H, W), mapped from `cache`, which is written first unless it holds just these files."""
    key_file = cache.with_suffix(".json")
    key = _cache_key(folder, paths, image_format)
    if not cache.exists() or not key_file.exists() or json.loads(key_file.read_text()) != key:
        _decode(paths, image_format, cache)
        key_file.write_text(json.dumps(key))
    return np.lib.format.open_memmap(cache, mode="r+")


def _cache_key(folder: Path, paths: Sequence[Path], image_format: ImageFormat) -> str:
    digest = hashlib.sha256(repr(image_format).encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(paths: Sequence[Path], image_format: ImageFormat, cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    shape = (len(paths), image_format.channels, image_format.size, image_format.size)
    images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    for row, path in enumerate(paths):
        images[row] = _read_image(path, image_format)
        if (row + 1) % 10_000 == 0:
            logger.info("decoded %d of %d images", row + 1, len(paths))
    images.flush()
    os.replace(partial, cache)
    logger.info("decoded %d images into %s", len(paths), cache)


def _read_image(path: Path, image_format: ImageFormat) -> NDArray[np.uint8]:
    """Return the largest centred square of an image, scaled: (C, H, W)."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGBA")
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    canvas = Image.new("RGBA", image.size, image_format.background)
    canvas.alpha_composite(image)
    side, size = min(image.size), image_format.size
    x, y = (image.width - side) // 2, (image.height - side) // 2
    square = canvas.crop((x, y, x + side, y + side)).convert("RGB" if image_format.channels == 3 else "L")
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    return pixels.reshape(size, size, image_format.channels).transpose(2, 0, 1)
