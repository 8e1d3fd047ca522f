"""OpenAPI descriptions of bodies that routes parse themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msf_server.oip.schemas import InferRequest
from msf_server.schemas.body import RequestBody


def body_of(model: type[RequestBody], *media_types: dict[str, Any], required: bool, **example: Any) -> dict[str, Any]:
    """Return the OpenAPI description of a body that the route parses itself, as JSON or one of `media_types`."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            siblings = {name: value for name, value in node.items() if name != "$ref"}
            return inline(definitions[node["$ref"].rpartition("/")[2]] | siblings)
        return {name: inline(value) for name, value in node.items()}

    content = {"application/json": {"schema": inline(schema) | example}}
    for media_type in media_types:
        content |= media_type
    return {"requestBody": {"required": required, "content": content}}


def infer_body(
    *media_types: dict[str, Any],
    inputs: Mapping[str, Sequence[str]],
    required_input: str,
    parameters: Mapping[str, Any],
    **example: Any,
) -> dict[str, Any]:
    """Return the description of an `InferRequest`: the datatypes of its inputs, the schemas of its parameters."""
    body = body_of(InferRequest, *media_types, required=True, **example)
    fields = body["requestBody"]["content"]["application/json"]["schema"]["properties"]
    fields["parameters"] = {"type": "object", "properties": dict(parameters), "additionalProperties": False}
    tensors = fields["inputs"]
    elements = {
        "string": [(name, [kind for kind in kinds if kind == "BYTES"]) for name, kinds in inputs.items()],
        "integer": [(name, [kind for kind in kinds if "INT" in kind]) for name, kinds in inputs.items()],
        "number": [(name, [kind for kind in kinds if kind.startswith("FP")]) for name, kinds in inputs.items()],
    }
    tensors["items"] = {
        "anyOf": [
            _tensor_schema(name, kinds, element)
            for element, columns in elements.items()
            for name, kinds in columns
            if kinds
        ]
    }
    tensors["contains"] = {"properties": {"name": {"const": required_input}}, "required": ["name"]}
    return body


def _tensor_schema(name: str, datatypes: Sequence[str], element: str) -> dict[str, Any]:
    """Describe an input whose elements are in the JSON."""
    item = {"type": element}
    return {
        "type": "object",
        "properties": {
            "name": {"const": name},
            "shape": {
                "description": "[n], [n, 1] or, for one value for all images, [1].",
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "minItems": 1,
                "maxItems": 2,
            },
            "datatype": {"enum": list(dict.fromkeys(datatypes))},
            "parameters": {"type": "object", "propertyNames": {"not": {"const": "binary_data_size"}}},
            "data": {"type": "array", "items": {"anyOf": [item, {"type": "array", "items": item}]}, "minItems": 1},
        },
        "required": ["name", "shape", "datatype", "data"],
        "additionalProperties": False,
    }
