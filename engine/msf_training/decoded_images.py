"""The pixels of a data set's image files, decoded once into a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from msf_training.image_files import ImageFormat, UnreadableImageError, read_image

logger = logging.getLogger(__name__)

PROGRESS_S = 5.0


@dataclass(frozen=True)
class DecodedImages:
    """Pixels (N, C, H, W) uint8, a row for each file; `reasons` maps rows that could not be read to why."""

    pixels: NDArray[np.uint8]
    reasons: dict[int, str]


def decode_images(folder: Path, paths: Sequence[Path], image_format: ImageFormat, cache: Path) -> DecodedImages:
    """Decode files below `folder` into the file `cache`, unless it holds just these, and map it. Raises OSError."""
    record_file = cache.with_suffix(".json")
    key = _key(folder, paths, image_format)
    record = json.loads(record_file.read_text()) if cache.exists() and record_file.exists() else None
    if not isinstance(record, dict) or record["key"] != key:
        record_file.unlink(missing_ok=True)
        record = {"key": key, "reasons": _decode(paths, image_format, cache)}
        record_file.write_text(json.dumps(record))
    reasons = {int(row): reason for row, reason in record["reasons"].items()}
    return DecodedImages(np.lib.format.open_memmap(cache, mode="r+"), reasons)


def _key(folder: Path, paths: Sequence[Path], image_format: ImageFormat) -> str:
    digest = hashlib.sha256(repr(image_format).encode())
    for path in paths:
        status = path.stat() if path.exists() else path.lstat()  # of a dangling link
        digest.update(os.fsencode(path.relative_to(folder)) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _decode(paths: Sequence[Path], image_format: ImageFormat, cache: Path) -> dict[int, str]:
    """Write the pixels and return the reasons of the rows that could not be read, which stay black."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".partial")
    shape = (len(paths), image_format.channels, image_format.size, image_format.size)
    pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    reasons: dict[int, str] = {}
    start = last_report = time.monotonic()
    for row, path in enumerate(paths):
        try:
            pixels[row] = read_image(path, image_format)
        except UnreadableImageError as error:
            reasons[row] = str(error)
        now = time.monotonic()
        if now - last_report >= PROGRESS_S:
            last_report = now
            left_s = (now - start) / (row + 1) * (len(paths) - row - 1)
            logger.info("decoded %d of %d images, about %.0f s left", row + 1, len(paths), left_s)
    pixels.flush()
    os.replace(partial, cache)
    logger.info("decoded %d images into %s", len(paths) - len(reasons), cache)
    return reasons
