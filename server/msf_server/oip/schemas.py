"""The bodies of the Open Inference Protocol, version 2, with Triton's extensions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from msf_scheduler.model_control import VersionState
from msf_server.schemas import RequestBody

Parameters = dict[str, str | bool | int | float]


class InputTensor(RequestBody):
    """A tensor whose elements are in `data`, or behind the JSON in as many bytes as `binary_data_size` says."""

    name: str = Field(description="the name of an input, a string.")
    shape: list[int] = Field(description="a list of integers: [n], [n, 1] or, for one value for all images, [1].")
    datatype: str = Field(description="a string: one of the protocol's tensor types.")
    parameters: Parameters = Field(default={}, description="an object; binary_data_size is known.")
    data: list[Any] | None = Field(default=None, description="a list of the tensor's elements.")


class RequestedOutput(RequestBody):
    name: str = Field(description='"images".')
    parameters: Parameters = Field(default={}, description="an object; binary_data is known.")


class InferRequest(RequestBody):
    """An inference request: one row of `label` is one image."""

    id: str | None = Field(default=None, description="a string, which the answer repeats.")
    parameters: Parameters = Field(default={}, description="an object of strings, numbers and booleans.")
    inputs: Annotated[list[InputTensor], Field(min_length=1, description="a list of tensors, label among them.")]
    outputs: list[RequestedOutput] | None = Field(default=None, description='a list with {"name": "images"}.')


class OutputTensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[int] | None = Field(None, description="Row by row; absent where the bytes come behind the JSON.")


class InferResponse(BaseModel):
    """What was made; `parameters` tell how, so that it can be made again."""

    id: str | None = None
    model_name: str
    model_version: str
    parameters: Parameters
    outputs: list[OutputTensor]


class OipError(BaseModel):
    """The protocol's error object."""

    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is the number of images.")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="Those that are served now.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    name: str
    ready: bool


class ConfigTensor(BaseModel):
    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class StringValue(BaseModel):
    string_value: str


class ModelConfiguration(BaseModel):
    """The part of Triton's model configuration that has a meaning here."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    parameters: dict[str, StringValue]


class Duration(BaseModel):
    count: int = 0
    ns: int = 0


class InferenceStats(BaseModel):
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration


class ModelStats(BaseModel):
    """Of one version, since this server process started."""

    name: str
    version: str
    last_inference: int = Field(description="When the last job ended, in Unix milliseconds; 0: none did.")
    inference_count: int = Field(description="Images made.")
    execution_count: int = Field(description="Jobs that made them.")
    inference_stats: InferenceStats
    batch_stats: list[dict[str, int]] = Field(description="Empty: step batches are counted by the workers' metrics.")


class Statistics(BaseModel):
    model_stats: list[ModelStats]


class IndexRequest(RequestBody):
    ready: bool = Field(default=False, description="true or false: whether only what is ready is wanted.")


class IndexEntry(BaseModel):
    name: str
    version: str
    state: VersionState
    reason: str = Field(description="Why it is not ready, or not as it should be.")


class LoadParameters(RequestBody):
    config: str = Field(
        default="{}", description="Triton's: a JSON object in a string, of which version_policy can be told here."
    )


class LoadRequest(RequestBody):
    parameters: LoadParameters = Field(default=LoadParameters(), description="an object with config at most.")


class UnloadParameters(RequestBody):
    unload_dependents: bool = Field(default=False, description="true or false; no model depends on another.")


class UnloadRequest(RequestBody):
    parameters: UnloadParameters = Field(
        default=UnloadParameters(), description="an object with unload_dependents at most."
    )


class LatestVersions(RequestBody):
    num_versions: Annotated[int, Field(ge=1, description="an integer from 1.")] = 1


class SpecificVersions(RequestBody):
    versions: Annotated[list[int], Field(min_length=1, description="a list of version numbers.")]


class VersionPolicy(RequestBody):
    """Triton's: exactly one of its fields."""

    all: dict[str, str] | None = Field(default=None, max_length=0, description="{}.")
    latest: LatestVersions | None = Field(default=None, description='an object such as {"num_versions": 1}.')
    specific: SpecificVersions | None = Field(default=None, description='an object such as {"versions": [2]}.')


class LoadConfig(RequestBody):
    name: str = Field(default="", description="a string.")
    version_policy: VersionPolicy = Field(
        default=VersionPolicy(all={}),
        description='{"all": {}}, {"latest": {"num_versions": n}} or {"specific": {"versions": [...]}}.',
    )


def body_of(model: type[RequestBody], *more: dict[str, Any], required: bool, **example: Any) -> dict[str, Any]:
    """What OpenAPI is to say of a body that the route reads itself, as JSON or in one of `more` types."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return whole(parts[part["$ref"].rpartition("/")[2]] | {n: v for n, v in part.items() if n != "$ref"})
        return {name: whole(each) for name, each in part.items()}

    content = {"application/json": {"schema": whole(schema) | example}}
    for each in more:
        content |= each
    return {"requestBody": {"required": required, "content": content}}


OIP_ERRORS: dict[int | str, dict[str, Any]] = {"default": {"model": OipError, "description": "What went wrong."}} | {
    status: {"model": OipError, "description": description}
    for status, description in {
        401: "No API key, or one that is not known.",
        403: "The API key has not the scope for this.",
        404: "No such model or version, or it is not loaded.",
        503: "Draining, Redis is away, or no worker serves the model.",
    }.items()
}
