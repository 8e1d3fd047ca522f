"""From a request and its model to the job that it asks for: every default filled in, every limit checked."""

from __future__ import annotations

import difflib
import heapq
import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import MAX_INDEX, MAX_SEED, JobSpec, ModelInfo
from msf_server.errors import InvalidRequest, shown
from msf_server.schemas import ImageRequest

Number = TypeVar("Number", int, float)


def resolve(request: ImageRequest, model: ModelInfo, max_images: int) -> JobSpec:
    """Raises InvalidRequest for the first value that `model` or the server does not allow."""
    own_size = f"{model.image_size}x{model.image_size}"
    if request.size not in (None, "auto", own_size):
        raise InvalidRequest(f'Invalid size: {shown(request.size)}. Allowed: "auto", "{own_size}".', param="size")
    return JobSpec(
        model=model.name,
        version=model.version,
        label=label_of(request.prompt, model),
        num_samples=_within("n", request.n, 1, default=1, highest=max_images),
        seed=_within("seed", request.seed, 0, default=secrets.randbelow(MAX_SEED + 1), highest=MAX_SEED),
        first_index=_within("first_index", request.first_index, 0, default=0, highest=MAX_INDEX),
        num_steps=_within("num_steps", request.num_steps, 2, model.default_num_steps, model.max_num_steps),
        guidance_scale=_within(
            "guidance_scale",
            request.guidance_scale,
            0.0,
            model.default_guidance_scale,
            model.max_guidance_scale,
        ),
        reproducibility=request.reproducibility,
        output_format=request.output_format or "png",
        output_compression=request.output_compression if request.output_format in ("webp", "jpeg") else None,
    )


def _within(param: str, value: Number | None, lowest: Number, default: Number, highest: Number) -> Number:
    if value is None:
        return default
    if not lowest <= value <= highest:
        raise InvalidRequest(f"Invalid {param}: {value}. Allowed: {lowest} to {highest}.", param=param)
    return value


@lru_cache(maxsize=64)
def _ids_by_name(labels: tuple[str, ...]) -> Mapping[str, int]:
    return {label.casefold(): label_id for label_id, label in reversed(list(enumerate(labels)))}


def label_of(name: str, model: ModelInfo, param: str = "prompt") -> int:
    """The id of a class by its name or id; a name wins, so that classes may be named by digits.

    Raises InvalidRequest, which names the closest classes.
    """
    ids = _ids_by_name(model.labels)
    wanted = name.strip().casefold()
    if (label := ids.get(wanted)) is not None:
        return label
    num_labels = len(model.labels)
    if wanted.isdecimal() and wanted.isascii() and int(wanted) < num_labels:
        return int(wanted)
    close = [model.labels[ids[name]] for name in _closest(wanted, ids)]
    hint = f"The closest are: {', '.join(close)}." if close else f"Such as: {', '.join(model.labels[:5])}."
    raise InvalidRequest(
        f"Invalid {param}: {shown(name)} is no class of {model.name}. Allowed: one of its {num_labels} "
        f"class names, or an id from 0 to {num_labels - 1}. {hint}",
        param=param,
        code=ErrorCode.UNKNOWN_CLASS,
    )


def _closest(wanted: str, names: Iterable[str]) -> list[str]:
    """difflib would take too long over thousands of names: it gets those that share the most pairs of letters."""
    pairs = set(pairwise(wanted))
    likely = heapq.nlargest(50, names, key=lambda name: len(pairs.intersection(pairwise(name))))
    return difflib.get_close_matches(wanted, likely, n=5, cutoff=0.5)
