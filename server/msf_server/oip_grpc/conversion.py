"""Protocol buffers of the Open Inference Protocol to the HTTP API's bodies, and back."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

from PIL import Image
from tritonclient.grpc import service_pb2

from msf_server.errors import InvalidRequest, quoted
from msf_server.oip.inference import OUTPUT
from msf_server.oip.tensors import BYTES, FLOATS, HEADER_LENGTH, INTEGERS
from msf_server.oip_grpc.asgi_call import Answer, Header
from msf_server.schemas.images import MAX_TIMEOUT_S

FINAL_RESPONSE = "triton_final_response"  # of a stream: no more responses to this request follow
_FLAGS = ("triton_enable_empty_final_response",)  # of a stream's requests; every last response is marked here
_CONTENTS = {  # where a tensor's elements are unless they are in raw_input_contents
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{"INT64": "int64_contents", "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents"},
    BYTES: "bytes_contents",
}


def infer_body(request: Any, remaining_s: float | None) -> tuple[bytes, list[Header]]:
    """Return the body and headers of an inference, which must end within `remaining_s`. Raises InvalidRequest."""
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries. Allowed: none, or {len(request.inputs)}, one for each input."
        )
    blobs = raw or [_packed(tensor) for tensor in request.inputs]
    parameters = {name: value for name, value in _parameters(request.parameters).items() if name not in _FLAGS}
    if remaining_s is not None and remaining_s < MAX_TIMEOUT_S:
        deadline_us, timeout_us = max(1, int(1e6 * remaining_s)), parameters.get("timeout", 0)
        if type(timeout_us) is int and timeout_us >= 0:
            parameters["timeout"] = min(timeout_us or deadline_us, deadline_us)
    body = {
        **({"id": request.id} if request.id else {}),
        "parameters": {**parameters, "binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": {**_parameters(tensor.parameters), "binary_data_size": len(blob)},
            }
            for tensor, blob in zip(request.inputs, blobs, strict=True)
        ],
        "outputs": [
            {"name": output.name, "parameters": {**_parameters(output.parameters), "binary_data": True}}
            for output in request.outputs
        ]
        or None,
    }
    header = json.dumps(body).encode()
    return b"".join((header, *blobs)), [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH.lower().encode(), b"%d" % len(header)),
    ]


def infer_response(answer: Answer) -> Any:
    """Return the answer to an inference, whose images follow its JSON as bytes."""
    length = int(answer.headers[HEADER_LENGTH])
    fields = json.loads(answer.body[:length])
    response = service_pb2.ModelInferResponse(
        model_name=fields["model_name"],
        model_version=fields["model_version"],
        id=fields.get("id") or "",
        outputs=[
            {"name": output["name"], "datatype": output["datatype"], "shape": output["shape"]}
            for output in fields["outputs"]
        ],
        raw_output_contents=[answer.body[length:]],
    )
    for name, value in fields["parameters"].items():
        set_parameter(response, name, value)
    return response


def preview_response(request: Any, row: int, number: int, file: bytes) -> Any:
    """Return a preview of one image of a request; more responses follow."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    response = service_pb2.ModelInferResponse(
        model_name=request.model_name,
        id=request.id,
        outputs=[{"name": OUTPUT, "datatype": "UINT8", "shape": [1, image.height, image.width, 3]}],
        raw_output_contents=[image.tobytes()],
    )
    for name, value in (("row", row), ("partial_image_index", number), (FINAL_RESPONSE, False)):
        set_parameter(response, name, value)
    return response


def set_parameter(response: Any, name: str, value: object) -> None:
    """Set a parameter of a response, in the field of its type."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param"}
    field = kinds.get(type(value), "string_param")
    setattr(response.parameters[name], field, value)


def repository_parameters(request: Any) -> dict[str, Any]:
    """Return the parameters of a load or an unload; bytes, which none has, only by their name."""
    parameters = _parameters(request.parameters)
    return {name: "" if isinstance(value, bytes) else value for name, value in parameters.items()}


def _parameters(parameters: Any) -> dict[str, Any]:
    """Return parameters by name; one without a value is an empty string, which no parameter allows."""
    fields = {name: parameter.WhichOneof("parameter_choice") for name, parameter in parameters.items()}
    return {name: getattr(parameters[name], field) if field else "" for name, field in fields.items()}


def _packed(tensor: Any) -> bytes:
    """Return the elements of a tensor as raw_input_contents would have them. Raises InvalidRequest."""
    field = _CONTENTS.get(tensor.datatype)
    if field is None:  # refused later, with all that is allowed
        return b""
    elements = getattr(tensor.contents, field)
    if tensor.datatype == BYTES:
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    try:
        return struct.pack(f"<{len(elements)}{(INTEGERS | FLOATS)[tensor.datatype]}", *elements)
    except struct.error as error:
        message = f"Invalid input {quoted(tensor.name)}: an element is not {tensor.datatype}: {error}."
        raise InvalidRequest(message, param=tensor.name) from error
