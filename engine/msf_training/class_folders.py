"""Class folders as training data: `DIR/<class>/<image>`, images of any size and format, decoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from msf_training.dataset import Split
from msf_training.decoded_images import decode_images
from msf_training.image_files import SUFFIXES, ImageFormat

logger = logging.getLogger(__name__)

NAMES_FILE = "names.json"  # optional, in DIR: image names by file stem up to VARIANT
VARIANT = "--"  # separates a variant's suffix in a file stem; all variants of an image are held out together
SKIPPED_FILE = "skipped.tsv"  # beside the decoded images: path and reason of each image file that cannot be read
MAX_UNREADABLE_PERCENT = 50.0
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
_NUM_LOGGED = 10


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


def load_class_folders(
    folder: Path,
    cache: Path,
    image_format: ImageFormat,
    held_out_percent: int = 0,
    max_unreadable_percent: float = MAX_UNREADABLE_PERCENT,
) -> ClassFolders:
    """Decode the images below `folder` into the file `cache`, unless it is current, and map it into memory.

    Training data may be larger than memory. Image files that cannot be read are left out, logged and written to
    SKIPPED_FILE. Raises ValueError that names the folder at fault, or the number of these files if they are too many.
    """
    labels = _class_names(folder)
    _log_unused(folder, [path for path in folder.iterdir() if path.is_file() and path.name != NAMES_FILE])
    files = {name: _image_files(folder / name) for name in labels}
    paths = [path for name in labels for path in files[name]]
    if len(labels) < 2 or not paths:
        raise ValueError(
            f"{folder} has {len(labels)} class folders with {len(paths)} images; at least 2 folders are needed"
        )
    images = decode_images(folder, paths, image_format, cache)
    reasons = {path: images.reasons[row] for row, path in enumerate(paths) if row in images.reasons}
    _report(folder, cache.with_name(SKIPPED_FILE), len(paths), reasons)
    _check_readable(folder, files, reasons, max_unreadable_percent)

    numbers = torch.arange(len(labels)).repeat_interleave(torch.tensor([len(files[name]) for name in labels]))
    is_readable = torch.tensor([path not in reasons for path in paths])
    is_held_out = torch.tensor([_is_held_out(path, held_out_percent) for path in paths])
    train_rows, held_out_rows = (
        (is_readable & is_chosen).nonzero().squeeze(1) for is_chosen in (~is_held_out, is_held_out)
    )
    image_names, name_indices = _read_names(folder / NAMES_FILE, [paths[row] for row in train_rows.tolist()], labels)
    pixels = torch.from_numpy(images.pixels)
    train, held_out = (Split(pixels, numbers, rows) for rows in (train_rows, held_out_rows))
    return ClassFolders(train, held_out, labels, image_names, name_indices)


def _class_names(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the class folders. Raises ValueError about a name that is not text."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in _SYSTEM_FOLDERS
    )
    for name in names:
        if not name.isprintable():
            raise ValueError(f"{folder} has a class folder {name!r}; allowed: printable UTF-8")
    return tuple(names)


def _image_files(folder: Path) -> list[Path]:
    """Return all files below a folder whose suffix is an image's, and log how many others there are of each."""
    files = [Path(parent, name) for parent, _, names in os.walk(folder, onerror=_raise) for name in names]
    _log_unused(folder, [path for path in files if path.suffix.lower() not in SUFFIXES])
    return sorted(path for path in files if path.suffix.lower() in SUFFIXES)


def _log_unused(folder: Path, files: Sequence[Path]) -> None:
    if files:
        counts = Counter(path.suffix.lower() or repr(path.name) for path in files).most_common(_NUM_LOGGED)
        summary = ", ".join(f"{count} {suffix}" for suffix, count in counts)
        logger.warning("%s has %d other files, which are not used: %s", folder, len(files), summary)


def _raise(error: OSError) -> None:
    raise error


def _report(folder: Path, file: Path, num_files: int, reasons: Mapping[Path, str]) -> None:
    """Log how many image files were read, and write those that were not, with reasons, to `file`."""
    logger.info("read %d of %d image files below %s", num_files - len(reasons), num_files, folder)
    file.unlink(missing_ok=True)
    if not reasons:
        return
    lines = [f"{str(path.relative_to(folder))!r}\t{reason!r}\n" for path, reason in reasons.items()]
    file.write_text("".join(lines))
    for path, reason in list(reasons.items())[:_NUM_LOGGED]:
        logger.warning("skipped %r: %s", str(path), reason)
    logger.warning("skipped %d image files in all; %s lists them", len(reasons), file)


def _check_readable(
    folder: Path, files: Mapping[str, Sequence[Path]], reasons: Mapping[Path, str], max_unreadable_percent: float
) -> None:
    """Raise ValueError if a class has no image that can be read, or too many files cannot."""
    num_files = sum(map(len, files.values()))
    if len(reasons) > num_files * max_unreadable_percent / 100:
        raise ValueError(
            f"{len(reasons)} of {num_files} image files below {folder} cannot be read; "
            f"allowed: {max_unreadable_percent:g} % (--max-unreadable)"
        )
    for name, class_files in files.items():
        if all(path in reasons for path in class_files):
            allowed = " ".join(sorted(SUFFIXES))
            raise ValueError(f"{folder / name} holds no image that can be read; allowed: {allowed}")


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


def _is_held_out(path: Path, percent: int) -> bool:
    """Decide by the stem alone, so that an image stays on its side when others are added or removed."""
    return int(hashlib.sha256(os.fsencode(_stem(path))).hexdigest(), 16) % 100 < percent
