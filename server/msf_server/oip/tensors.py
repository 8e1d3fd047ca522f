"""Tensors on the wire: lists in the JSON, or bytes after it (binary tensor extension)."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from starlette.datastructures import Headers

from msf_server.errors import InvalidRequest, quoted
from msf_server.oip.schemas import InferRequest, InferResponse, InputTensor, OutputTensor
from msf_server.schemas.body import parse_json

HEADER_LENGTH = "Inference-Header-Content-Length"
INTEGERS = {
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"},
    **{"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
}
FLOATS = {"FP32": "f", "FP64": "d"}
BYTES = "BYTES"
MAX_JSON_ELEMENTS = 2**18  # of an output, about a megabyte: larger ones are sent as bytes
_EMPTY = b'"data":[]'  # occurs once: in strings, quotes are escaped
_DECIMALS = tuple(map(str, range(256)))


def read_request(body: bytes, headers: Headers) -> tuple[InferRequest, dict[str, list[Any]]]:
    """Parse a request and the elements (int, float or str) of its inputs. Raises InvalidRequest."""
    header, blob = _split(body, headers.get(HEADER_LENGTH))
    request = InferRequest.model_validate(parse_json(header))
    inputs: dict[str, list[Any]] = {}
    for tensor in request.inputs:
        if tensor.name in inputs:
            raise InvalidRequest(f"The input {quoted(tensor.name)} occurs twice.", param=tensor.name)
        size = tensor.parameters.get("binary_data_size")
        if size is not None and (type(size) is not int or not 0 <= size <= len(blob)):
            raise _invalid(tensor, f"its binary_data_size is {size}, but {len(blob)} bytes remain after the JSON")
        binary, blob = (None, blob) if size is None else (blob[:size], blob[size:])
        inputs[tensor.name] = _elements(tensor, binary)
    if blob:
        raise InvalidRequest(f"The last {len(blob)} bytes after the JSON belong to no input.")
    return request, inputs


def _split(body: bytes, length: str | None) -> tuple[bytes, bytes]:
    if length is None:
        return body, b""
    if not (length.isascii() and length.isdecimal() and len(length) < 12 and int(length) <= len(body)):
        raise InvalidRequest(
            f"Invalid {HEADER_LENGTH}: {quoted(length)}. Allowed: 0 to {len(body)}, the length of the body."
        )
    return body[: int(length)], body[int(length) :]


def _elements(tensor: InputTensor, blob: bytes | None) -> list[Any]:
    count = _count(tensor)
    if tensor.datatype not in (*INTEGERS, *FLOATS, BYTES):
        raise _invalid(
            tensor, f"its datatype is {quoted(tensor.datatype)}; allowed: {', '.join((*INTEGERS, *FLOATS))}, {BYTES}"
        )
    if blob is None:
        elements = _listed(tensor)
    elif tensor.datatype == BYTES:
        elements = list(_strings(tensor, blob))
    else:
        elements = _numbers(tensor, blob)
    if len(elements) != count:
        raise _invalid(tensor, f"its shape {tensor.shape} requires {count} elements, but it has {len(elements)}")
    return elements


def _count(tensor: InputTensor) -> int:
    match tensor.shape:
        case [int(count)] | [int(count), 1] if count > 0:
            return count
    raise _invalid(tensor, f"its shape is {quoted(tensor.shape)}; allowed: [n], [n, 1]")


def _listed(tensor: InputTensor) -> list[Any]:
    if tensor.data is None:
        raise _invalid(tensor, "it has neither data nor binary_data_size")
    flat = [value for item in tensor.data for value in (item if isinstance(item, list) else (item,))]
    kinds = (str,) if tensor.datatype == BYTES else (int,) if tensor.datatype in INTEGERS else (int, float)
    for element in flat:
        if type(element) not in kinds:
            raise _invalid(tensor, f"{quoted(element)} is not {tensor.datatype}")
    return flat


def _numbers(tensor: InputTensor, blob: bytes) -> list[Any]:
    code = (INTEGERS | FLOATS)[tensor.datatype]
    count, rest = divmod(len(blob), struct.calcsize(code))
    if rest:
        raise _invalid(tensor, f"{len(blob)} bytes are not a whole number of {tensor.datatype} elements")
    numbers = struct.unpack(f"<{count}{code}", blob)
    # Round to the decimal that the sender meant: 2.2 is 2.2000000476837158 in 32 bits.
    return [float(f"{number:.7g}") for number in numbers] if code == "f" else list(numbers)


def _strings(tensor: InputTensor, blob: bytes) -> Iterator[str]:
    """Yield strings that are stored as a length in four bytes and that many bytes of UTF-8."""
    start = 0
    while start < len(blob):
        end = start + 4 + int.from_bytes(blob[start : start + 4], "little")
        if start + 4 > len(blob) or end > len(blob):
            raise _invalid(tensor, "a string exceeds the end of the data")
        try:
            yield blob[start + 4 : end].decode()
        except UnicodeDecodeError as error:
            raise _invalid(tensor, "a string is not UTF-8") from error
        start = end


def check_output(num_images: int, image_size: int, *, binary: bool) -> None:
    """Raise InvalidRequest if the images would be too many numbers in JSON."""
    num_elements = num_images * image_size**2 * 3
    if not binary and num_elements > MAX_JSON_ELEMENTS:
        raise InvalidRequest(
            f"The images would be {num_elements} numbers in JSON. Allowed: {MAX_JSON_ELEMENTS} numbers, or any number "
            'of bytes after the JSON: send "parameters": {"binary_data_output": true}.',
            param="outputs",
        )


def _invalid(tensor: InputTensor, problem: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid input {quoted(tensor.name)}: {problem}.", param=tensor.name)


def pixels(file: bytes) -> bytes:
    """Decode an image file to RGB, (height, width, 3); grey images repeat their channel."""
    return Image.open(io.BytesIO(file)).convert("RGB").tobytes()


def write_response(
    answer: InferResponse, files: Sequence[bytes], image_size: int, *, binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Return the body, `answer` with the files' pixels as its output, and its headers."""
    tensors = [pixels(file) for file in files]
    output = OutputTensor(name="images", shape=[len(files), image_size, image_size, 3], datatype="UINT8")
    output = output.model_copy(
        update={"parameters": {"binary_data_size": sum(map(len, tensors))}} if binary else {"data": []}
    )
    answer = answer.model_copy(update={"outputs": [output]})
    header = json.dumps(answer.model_dump(exclude_none=True), separators=(",", ":")).encode()
    if not binary:
        data = ",".join(map(_numbers_text, tensors)).encode()
        return header.replace(_EMPTY, _EMPTY[:-1] + data + b"]"), {"Content-Type": "application/json"}
    return b"".join((header, *tensors)), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}


def _numbers_text(tensor: bytes) -> str:
    """Write the elements of one image; of all images in one call, it would hold Python's global lock too long."""
    return ",".join(map(_DECIMALS.__getitem__, tensor))
