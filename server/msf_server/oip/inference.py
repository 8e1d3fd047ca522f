"""Orders of an inference request: each row of its inputs is one image."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msf_scheduler.jobs import MAX_SEED, ModelInfo, Priority
from msf_scheduler.queue import Idempotency
from msf_server.callers import Caller
from msf_server.catalog import Availability
from msf_server.class_names import label_id
from msf_server.errors import InvalidRequest, quoted
from msf_server.oip.schemas import InferRequest, Parameters
from msf_server.oip.tensors import BYTES, FLOATS, INTEGERS
from msf_server.orders import Order, make_order
from msf_server.schemas.images import MAX_PREVIEWS, MAX_TIMEOUT_S, ImageRequest
from msf_server.settings import ServerSettings

LABEL = "label"
NEGATIVE_LABEL = "negative_label"  # a class to steer away from; an empty string or -1 is none
_INTEGER = tuple(INTEGERS)
INPUTS: dict[str, tuple[str, ...]] = {  # datatypes of each input; metadata lists the first
    LABEL: (BYTES, *_INTEGER),
    "seed": ("INT64", *_INTEGER),
    "first_index": ("INT32", *_INTEGER),
    "num_steps": ("INT32", *_INTEGER),
    "guidance_scale": tuple(FLOATS),
    NEGATIVE_LABEL: (BYTES, *_INTEGER),
}
OUTPUT = "images"
_IMAGE_FIELDS = ("cache", "partial_images", "reproducibility", "user")  # parameters that are fields of an image request
PARAMETERS: dict[str, dict[str, Any]] = {  # of a request, with their schemas
    "binary_data_output": {"type": ["boolean", "string", "number"]},
    "priority": {"type": "integer", "minimum": 0, "description": "1 is the highest, 3 the lowest, 0 the default."},
    "timeout": {"type": "integer", "minimum": 0, "maximum": int(MAX_TIMEOUT_S * 1e6), "description": "Microseconds."},
    "cache": {"type": "boolean"},
    "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PREVIEWS},
    "reproducibility": {"enum": ["strict", "fast"]},
    "user": {"type": "string", "maxLength": 256},
}


@dataclass(frozen=True)
class InputRow:
    """One image: sample `index` of a job with this label, seed, number of steps, guidance scale and negative label."""

    index: int
    values: tuple[Any, ...]


def make_orders(
    call: InferRequest,
    inputs: Mapping[str, list[Any]],
    model: ModelInfo,
    availability: Availability,
    caller: Caller,
    settings: ServerSettings,
    idempotency: Idempotency | None,
) -> list[Order]:
    """Make one order for each run of rows that a single job can generate, in the order of the rows.

    `idempotency` has the raw body. Raises InvalidRequest, ApiError.
    """
    _check_names(call)
    runs = _runs(_rows(call, inputs, model, settings.max_images_per_request))
    fields = _image_fields(call.parameters)
    if "seed" not in inputs:
        fields["cache"] = False  # a seed drawn here is never requested again
    orders = []
    for number, rows in enumerate(runs):
        label, seed, num_steps, guidance_scale, negative_label = rows[0].values
        body = ImageRequest(
            prompt=str(label),
            n=len(rows),
            seed=seed,
            first_index=rows[0].index,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            negative_prompt=None if negative_label is None else str(negative_label),
            output_format="png",
            **fields,
        )
        key = idempotency.key if idempotency else None
        order = make_order(body, model, availability, caller, settings, idempotency_key=key)
        spec = order.spec.model_copy(update={"label": label})  # an id, even if a class is named by the same digits
        if spec.negative_label is not None:
            spec = spec.model_copy(update={"negative_label": negative_label})
        numbered = idempotency and replace(idempotency, key=f"{idempotency.key} {number}")
        orders.append(replace(order, spec=spec, idempotency=numbered))
    return orders


def wants_binary(call: InferRequest) -> bool:
    """Return whether the images are to follow the JSON as bytes."""
    default = call.parameters.get("binary_data_output", False)
    return bool(call.outputs[0].parameters.get("binary_data", default) if call.outputs else default)


def _check_names(call: InferRequest) -> None:
    for tensor in call.inputs:
        if tensor.name not in INPUTS:
            raise InvalidRequest(
                f"Unknown input {quoted(tensor.name)}. Allowed: {', '.join(INPUTS)}.", param=tensor.name
            )
        if tensor.datatype not in INPUTS[tensor.name]:
            allowed = ", ".join(INPUTS[tensor.name])
            raise InvalidRequest(
                f"Invalid datatype of {tensor.name}: {quoted(tensor.datatype)}. Allowed: {allowed}.", param=tensor.name
            )
    for output in call.outputs or ():
        if output.name != OUTPUT or not output.parameters.keys() <= {"binary_data"}:
            raise InvalidRequest(
                f"Invalid output {quoted(output.name)} with {quoted(list(output.parameters))}. "
                f"Allowed: {OUTPUT}, with binary_data as its only parameter.",
                param="outputs",
            )
    if unknown := [name for name in call.parameters if name not in PARAMETERS]:
        raise InvalidRequest(
            f"Unknown parameter {quoted(unknown[0])}. Allowed: {', '.join(PARAMETERS)}.", param="parameters"
        )


def _rows(call: InferRequest, inputs: Mapping[str, list[Any]], model: ModelInfo, max_images: int) -> list[InputRow]:
    if LABEL not in inputs:
        raise InvalidRequest(f"The input {LABEL} is missing. Allowed: class names or ids.", param=LABEL)
    num_rows = max(len(values) for values in inputs.values())
    for name, values in inputs.items():
        if len(values) not in (1, num_rows):
            raise InvalidRequest(
                f"{name} has {len(values)} rows. Allowed: 1, or {num_rows} as in other inputs.", param=name
            )
    if num_rows > max_images:
        raise InvalidRequest(f"The inputs have {num_rows} rows. Allowed: 1 to {max_images}.", param=LABEL)
    columns: list[list[Any]] = [
        [_label(label, model, LABEL) for label in inputs[LABEL]],
        inputs.get("seed") or [secrets.randbelow(MAX_SEED + 1)],
        inputs.get("num_steps", [None]),
        inputs.get("guidance_scale", [None]),
        [
            None if label in ("", -1) else _label(label, model, NEGATIVE_LABEL)
            for label in inputs.get(NEGATIVE_LABEL, [""])
        ],
    ]
    first_indices = inputs.get("first_index", [0])
    # Rows that share a seed are its successive samples; a row with its own seed stands alone.
    is_sequence = len(columns[1]) == 1 and len(first_indices) == 1
    row_values = zip(*(_broadcast(column, num_rows) for column in columns), strict=True)
    return [
        InputRow(first + row if is_sequence else first, values)
        for row, (first, values) in enumerate(zip(_broadcast(first_indices, num_rows), row_values, strict=True))
    ]


def _broadcast(values: list[Any], num_rows: int) -> list[Any]:
    return values if len(values) == num_rows else values * num_rows


def _label(label: str | int, model: ModelInfo, param: str) -> int:
    if isinstance(label, str):
        return label_id(label, model, param)
    if not 0 <= label < len(model.labels):
        raise InvalidRequest(f"Invalid {param}: {label}. Allowed: 0 to {len(model.labels) - 1}.", param=param)
    return label


def _runs(rows: Sequence[InputRow]) -> list[list[InputRow]]:
    """Group successive rows that continue the same job."""
    runs = [[rows[0]]]
    for row in rows[1:]:
        last = runs[-1][-1]
        if row == InputRow(last.index + 1, last.values):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _image_fields(parameters: Parameters) -> dict[str, Any]:
    """Translate parameters to fields of an image request.

    Triton's priorities count down from 1, the highest, and its timeouts are in microseconds; 0 means the default.
    """
    fields: dict[str, Any] = {name: parameters[name] for name in _IMAGE_FIELDS if name in parameters}
    for name in ("priority", "timeout"):
        value = parameters.get(name, 0)
        if type(value) is not int or value < 0:
            raise InvalidRequest(f"Invalid {name}: {quoted(value)}. Allowed: an integer from 0.", param=name)
        if value and name == "priority":
            fields["priority"] = {1: Priority.HIGH, 2: Priority.NORMAL}.get(value, Priority.LOW)
        elif value:
            fields["timeout_s"] = value / 1e6
    return fields
