"""Bodies of the Open Inference Protocol, version 2, with Triton's extensions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from msf_scheduler.model_control import VersionState
from msf_server.schemas.body import RequestBody

MAX_TENSORS = 16  # more than any model has
Parameters = dict[str, str | bool | int | float]


class InputTensor(RequestBody):
    """A tensor whose elements are in `data`, or in `binary_data_size` bytes after the JSON."""

    name: str = Field(description="the name of an input, a string.")
    shape: list[int] = Field(description="a list of integers: [n], [n, 1] or, for one value for all images, [1].")
    datatype: str = Field(description="a string: a tensor type of the protocol.")
    parameters: Parameters = Field(default={}, description="an object with binary_data_size at most.")
    data: list[Any] | None = Field(default=None, description="a list of the tensor's elements.")


class RequestedOutput(RequestBody):
    """An output that the caller asks for."""

    name: str = Field(description='"images".', json_schema_extra={"enum": ["images"]})
    parameters: Parameters = Field(
        default={},
        description="an object with binary_data at most.",
        json_schema_extra={"propertyNames": {"enum": ["binary_data"]}},
    )


class InferRequest(RequestBody):
    """An inference request; each row of `label` is one image."""

    id: str | None = Field(default=None, description="a string that the answer repeats.")
    parameters: Parameters = Field(default={}, description="an object of strings, numbers and booleans.")
    inputs: Annotated[
        list[InputTensor],
        Field(min_length=1, max_length=MAX_TENSORS, description="a list of tensors that includes label."),
    ]
    outputs: list[RequestedOutput] | None = Field(
        default=None, max_length=MAX_TENSORS, description='a list with {"name": "images"}.'
    )


class OutputTensor(BaseModel):
    """An output of an inference."""

    name: str
    shape: list[int]
    datatype: str
    parameters: Parameters | None = None
    data: list[int] | None = Field(None, description="In row-major order; absent if the bytes follow the JSON.")


class InferResponse(BaseModel):
    """Images; `parameters` hold what is needed to generate them again."""

    id: str | None = None
    model_name: str
    model_version: str
    parameters: Parameters
    outputs: list[OutputTensor]


class OipError(BaseModel):
    """The protocol's error object."""

    error: str


class ServerMetadata(BaseModel):
    """Answer of `GET /v2`."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """Name, type and shape of an input or output."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 is the number of images.")


class ModelMetadata(BaseModel):
    """Answer of `GET /v2/models/{model}`."""

    name: str
    versions: list[str] = Field(description="Versions that are served now.")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Answer of `GET /v2/models/{model}/ready`."""

    name: str
    ready: bool


class ConfigTensor(BaseModel):
    """An input or output in Triton's model configuration."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class StringValue(BaseModel):
    """A parameter in Triton's model configuration."""

    string_value: str


class ModelConfiguration(BaseModel):
    """The fields of Triton's model configuration that apply here."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfigTensor]
    output: list[ConfigTensor]
    parameters: dict[str, StringValue]


class Duration(BaseModel):
    """Number of events and their total time."""

    count: int = 0
    ns: int = 0


class InferenceStats(BaseModel):
    """Requests and their phases, as Triton counts them."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration


class ModelStats(BaseModel):
    """Statistics of one version since the start of this server process."""

    name: str
    version: str
    last_inference: int = Field(description="End of the last job, in Unix milliseconds; 0: none has ended.")
    inference_count: int = Field(description="Images generated.")
    execution_count: int = Field(description="Jobs that generated them.")
    inference_stats: InferenceStats
    batch_stats: list[dict[str, int]] = Field(description="Empty: the workers' metrics count step batches.")


class Statistics(BaseModel):
    """Answer of `GET /v2/models/{model}/stats`."""

    model_stats: list[ModelStats]


class IndexRequest(RequestBody):
    """Body of `POST /v2/repository/index`."""

    ready: bool = Field(
        default=False,
        description="true or false: whether to list ready versions only.",
        json_schema_extra={"type": ["boolean", "null"]},
    )


class IndexEntry(BaseModel):
    """A version in the repository index."""

    name: str
    version: str
    state: VersionState
    reason: str = Field(description="Why it is not ready, or differs from the request.")


class LoadParameters(RequestBody):
    """Parameters of a load."""

    config: str = Field(
        default="{}", description="Triton's: a JSON object in a string; only version_policy applies here."
    )


class LoadRequest(RequestBody):
    """Body of `POST /v2/repository/models/{model}/load`."""

    parameters: LoadParameters = Field(default=LoadParameters(), description="an object with config at most.")


class UnloadParameters(RequestBody):
    """Parameters of an unload."""

    unload_dependents: bool = Field(
        default=False, description="true or false; has no effect, as no model depends on another."
    )


class UnloadRequest(RequestBody):
    """Body of `POST /v2/repository/models/{model}/unload`."""

    parameters: UnloadParameters = Field(
        default=UnloadParameters(), description="an object with unload_dependents at most."
    )


class LatestVersions(RequestBody):
    """Policy that serves the newest versions."""

    num_versions: Annotated[int, Field(ge=1, description="an integer from 1.")] = 1


class SpecificVersions(RequestBody):
    """Policy that serves the versions listed."""

    versions: Annotated[list[int], Field(min_length=1, description="a list of version numbers.")]


class VersionPolicy(RequestBody):
    """Triton's version policy: exactly one of its fields."""

    all: dict[str, str] | None = Field(default=None, max_length=0, description="{}.")
    latest: LatestVersions | None = Field(default=None, description='an object such as {"num_versions": 1}.')
    specific: SpecificVersions | None = Field(default=None, description='an object such as {"versions": [2]}.')


class LoadConfig(RequestBody):
    """Model configuration in a load's `config`; only the version policy applies."""

    name: str = Field(default="", description="a string.")
    version_policy: VersionPolicy = Field(
        default=VersionPolicy(all={}),
        description='{"all": {}}, {"latest": {"num_versions": n}} or {"specific": {"versions": [...]}}.',
    )


class AliasRequest(RequestBody):
    """Body of `PUT /v2/repository/aliases/{alias}`."""

    versions: dict[str, float] = Field(
        min_length=1, description='an object of weights that sum to 1, by version, such as {"1": 0.9, "2": 0.1}.'
    )


_ERRORS: dict[int | str, str] = {
    "default": "Error message.",
    401: "The API key is missing or unknown.",
    403: "The API key lacks the required scope.",
    404: "No such model or version, or it is not loaded.",
    503: "The server is draining, Redis is unreachable, or no worker serves the model.",
}
OIP_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OipError, "description": description} for status, description in _ERRORS.items()
}
