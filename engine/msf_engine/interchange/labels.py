"""Class names of imported models: from a file, from the source, or ImageNet's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from msf_engine.errors import CheckpointError
from msf_engine.regular_files import read_small

NUM_IMAGENET_CLASSES = 1000


def class_labels(num_classes: int, labels_file: Path | None, id2label: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return a distinct name for each class. Raises CheckpointError."""
    if labels_file is not None:
        labels = _read_labels(labels_file)
        source = str(labels_file)
    elif id2label:
        labels = _first_names(id2label)
        source = "id2label of model_index.json"
    elif num_classes == NUM_IMAGENET_CLASSES:
        labels = imagenet_labels()
        source = "ImageNet"
    else:
        raise CheckpointError(f"the checkpoint has {num_classes} classes without names; wanted: --labels FILE")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise CheckpointError(f"{source} has the name {repeated[0]!r} more than once; wanted: distinct names")
    if len(labels) != num_classes:
        raise CheckpointError(f"{source} has {len(labels)} names; wanted: {num_classes}, as the checkpoint has classes")
    return tuple(labels)


def imagenet_labels() -> list[str]:
    """Return the names of the 1,000 classes of ImageNet (ILSVRC 2012), in their order."""
    content: dict[str, list[str]] = json.loads((files(__package__) / "imagenet_labels.json").read_text("utf-8"))
    return content["labels"]


def _read_labels(file: Path) -> list[str]:
    """Read a JSON list of names, or a text file with one on each line."""
    try:
        text = read_small(file).decode()
        labels = json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file} cannot be read: {reason}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise CheckpointError(f"{file} is no list of names; wanted: a JSON list, or one name on each line of a .txt")
    return [label.strip() for label in labels]


def _first_names(id2label: Mapping[str, str]) -> list[str]:
    """Return the first of each class's names, which a comma separates; all of them where the first is not unique."""
    try:
        synonyms = [id2label[str(index)] for index in range(len(id2label))]
        firsts = [names.split(",")[0].strip() for names in synonyms]
    except (KeyError, AttributeError) as error:
        raise CheckpointError(
            f"id2label of model_index.json has no name for class {error}; wanted: one each"
        ) from error
    counts, all_counts = Counter(map(str.casefold, firsts)), Counter(synonyms)
    labels = []
    for index, (first, names) in enumerate(zip(firsts, synonyms, strict=True)):
        label = first if counts[first.casefold()] == 1 else names
        labels.append(label if all_counts[names] == 1 or label == first else f"{names} ({index})")
    return labels
