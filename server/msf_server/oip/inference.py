"""From an inference request to the jobs that answer it: one row of its inputs is one image."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Request

from msf_scheduler.jobs import MAX_SEED, ModelInfo, Priority
from msf_scheduler.queue import Idempotency
from msf_server.dependencies import ServerContext
from msf_server.errors import InvalidRequest, shown
from msf_server.oip.schemas import InferRequest, Parameters
from msf_server.oip.tensors import BYTES, FLOATS, INTEGERS
from msf_server.orders import Order, read_order
from msf_server.resolve import label_of
from msf_server.schemas import ImageRequest

LABEL = "label"
_INTEGER = tuple(INTEGERS)
INPUTS: dict[str, tuple[str, ...]] = {  # the datatypes of each, the one that metadata tell first
    LABEL: (BYTES, *_INTEGER),
    "seed": ("INT64", *_INTEGER),
    "first_index": ("INT32", *_INTEGER),
    "num_steps": ("INT32", *_INTEGER),
    "guidance_scale": tuple(FLOATS),
}
OUTPUT = "images"
_PASSED_ON = ("cache", "reproducibility", "user")  # parameters that are fields of an image request
_PARAMETERS = ("binary_data_output", "priority", "timeout", *_PASSED_ON)


@dataclass(frozen=True)
class Row:
    """One image: sample `index` of a job with this label, seed, number of steps and guidance scale."""

    index: int
    what: tuple[Any, ...]


async def read_orders(
    asked: InferRequest,
    inputs: Mapping[str, list[Any]],
    model: ModelInfo,
    raw: bytes,
    request: Request,
    context: ServerContext,
) -> list[Order]:
    """An order for each run of rows that one job can make; together they make all rows in their order.

    Raises InvalidRequest and as `read_order` does.
    """
    _check_names(asked)
    runs = _runs(_rows(asked, inputs, model, context.settings.max_images_per_request))
    terms = _terms(asked.parameters)
    if "seed" not in inputs:
        terms["cache"] = False  # nobody asks for a seed just drawn again
    orders = []
    for number, rows in enumerate(runs):
        label, seed, num_steps, guidance_scale = rows[0].what
        body = ImageRequest(
            prompt=str(label),
            n=len(rows),
            seed=seed,
            first_index=rows[0].index,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            output_format="png",
            **terms,
        )
        order = await read_order(body, request, context, model)
        order = replace(order, spec=order.spec.model_copy(update={"label": label}))  # whatever class is named "3"
        if order.idempotency is not None:
            order = replace(order, idempotency=Idempotency(f"{order.idempotency.key} {number}", raw))
        orders.append(order)
    return orders


def wants_binary(asked: InferRequest) -> bool:
    """Whether the images are to come behind the JSON."""
    default = asked.parameters.get("binary_data_output", False)
    return bool(asked.outputs[0].parameters.get("binary_data", default) if asked.outputs else default)


def _check_names(asked: InferRequest) -> None:
    for tensor in asked.inputs:
        if tensor.name not in INPUTS:
            raise InvalidRequest(
                f"Unknown input {shown(tensor.name)}. Allowed: {', '.join(INPUTS)}.", param=tensor.name
            )
        if tensor.datatype not in INPUTS[tensor.name]:
            allowed = ", ".join(INPUTS[tensor.name])
            raise InvalidRequest(
                f"Invalid datatype of {tensor.name}: {shown(tensor.datatype)}. Allowed: {allowed}.", param=tensor.name
            )
    for output in asked.outputs or ():
        if output.name != OUTPUT or not output.parameters.keys() <= {"binary_data"}:
            raise InvalidRequest(
                f"Invalid output {shown(output.name)} with {shown(list(output.parameters))}. "
                f"Allowed: {OUTPUT}, with binary_data as its only parameter.",
                param="outputs",
            )
    if unknown := [name for name in asked.parameters if name not in _PARAMETERS]:
        raise InvalidRequest(
            f"Unknown parameter {shown(unknown[0])}. Allowed: {', '.join(_PARAMETERS)}.", param="parameters"
        )


def _rows(asked: InferRequest, inputs: Mapping[str, list[Any]], model: ModelInfo, max_images: int) -> list[Row]:
    if LABEL not in inputs:
        raise InvalidRequest(f"The input {LABEL} is missing. Allowed: class names or ids.", param=LABEL)
    num_rows = max(len(values) for values in inputs.values())
    for name, values in inputs.items():
        if len(values) not in (1, num_rows):
            raise InvalidRequest(
                f"{name} has {len(values)} rows. Allowed: 1 or, as others have, {num_rows}.", param=name
            )
    if num_rows > max_images:
        raise InvalidRequest(f"There are {num_rows} rows. Allowed: 1 to {max_images}.", param=LABEL)
    names = asked.inputs[[tensor.name for tensor in asked.inputs].index(LABEL)].datatype == BYTES
    labels = [label_of(each, model, LABEL) if names else _label_id(each, model) for each in inputs[LABEL]]
    columns: list[list[Any]] = [
        labels,
        inputs.get("seed") or [secrets.randbelow(MAX_SEED + 1)],
        inputs.get("num_steps", [None]),
        inputs.get("guidance_scale", [None]),
    ]
    whats = zip(*(_spread(column, num_rows) for column in columns), strict=True)
    firsts = _spread(inputs.get("first_index", [0]), num_rows)
    # Rows that share a seed are its successive samples; a row with a seed of its own is a request of its own.
    counts_on = len(columns[1]) == 1 and len(inputs.get("first_index", [0])) == 1
    return [
        Row(first + row if counts_on else first, what)
        for row, (first, what) in enumerate(zip(firsts, whats, strict=True))
    ]


def _spread(values: list[Any], num_rows: int) -> list[Any]:
    return values if len(values) == num_rows else values * num_rows


def _label_id(label: int, model: ModelInfo) -> int:
    if not 0 <= label < len(model.labels):
        raise InvalidRequest(f"Invalid {LABEL}: {label}. Allowed: 0 to {len(model.labels) - 1}.", param=LABEL)
    return label


def _runs(rows: Sequence[Row]) -> list[list[Row]]:
    runs = [[rows[0]]]
    for row in rows[1:]:
        last = runs[-1][-1]
        if row == Row(last.index + 1, last.what):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _terms(parameters: Parameters) -> dict[str, Any]:
    """Triton's priorities count down from 1, the highest, and its timeouts are in microseconds; 0 is the default."""
    terms: dict[str, Any] = {name: parameters[name] for name in _PASSED_ON if name in parameters}
    for name in ("priority", "timeout"):
        value = parameters.get(name, 0)
        if type(value) is not int or value < 0:
            raise InvalidRequest(f"Invalid {name}: {shown(value)}. Allowed: an integer from 0.", param=name)
        if value and name == "priority":
            terms["priority"] = {1: Priority.HIGH, 2: Priority.NORMAL}.get(value, Priority.LOW)
        elif value:
            terms["timeout_s"] = value / 1e6
    return terms
