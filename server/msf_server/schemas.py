"""The bodies of requests and answers. A field's description says what it allows: docs and errors quote it."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import (
    MAX_INDEX,
    MAX_SEED,
    Delivery,
    JobError,
    JobSpec,
    JobState,
    OutputFormat,
    Priority,
    Progress,
    Provenance,
    Reproducibility,
    Timings,
)
from msf_server.errors import ErrorResponse, InvalidRequest, shown


class RequestBody(BaseModel):
    """Base of all request bodies: JSON types are taken strictly, and what is wrong is said in our words."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, value: object, parse: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return parse(value)
        except ValidationError as error:
            raise cls._explained(error) from error

    @classmethod
    def _explained(cls, error: ValidationError) -> InvalidRequest:
        problems = error.errors(include_url=False)
        path = problems[0]["loc"]
        if not path:
            hint = " sent as Content-Type: application/json" if isinstance(problems[0]["input"], bytes) else ""
            return InvalidRequest(
                f"The body is not a JSON object. Allowed: a JSON object{hint}.", code=ErrorCode.INVALID_JSON
            )
        sentences = (cls._sentence(str(p["loc"][0]), p["type"], p["input"]) for p in problems)
        code = {"missing": ErrorCode.MISSING_FIELD, "extra_forbidden": ErrorCode.UNKNOWN_FIELD}.get(problems[0]["type"])
        return InvalidRequest(" ".join(sentences), param=str(path[0]), code=code)

    @classmethod
    def _sentence(cls, field: str, problem: str, value: object) -> str:
        if problem == "extra_forbidden":
            close = difflib.get_close_matches(field[:80], cls.model_fields, n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            return f"Unknown field {shown(field)}. {hint}Allowed: {', '.join(cls.model_fields)}."
        allowed = cls.model_fields[field].description
        if problem == "missing":
            return f"{field} is missing. Allowed: {allowed}"
        return f"Invalid {field}: {shown(value)}. Allowed: {allowed}"


def _no_op(name: str) -> str:
    return f"{name}; accepted for OpenAI's clients and without effect here."


MAX_TIMEOUT_S = 3600.0
MAX_PREVIEWS = 3


class ImageRequest(RequestBody):
    """OpenAI's image request over classes; from `seed` to `cache`, the fields are extensions."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "dress", "n": 4, "seed": 7, "num_steps": 12, "guidance_scale": 2.0}}
    )

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            description="a class name (in any case) or id, as a string; GET /v1/models lists the classes.",
        ),
    ]
    model: str | None = Field(
        default=None,
        max_length=200,
        description='a model of GET /v1/models as "name" (its newest version) or "name:version"; '
        "without it, the first one.",
    )
    n: int | None = Field(
        default=None, description="how many images, an integer from 1 to the model's max_n; without it, 1."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description='"b64_json": images come inside the answer, or "url": as addresses that work without a key for as '
        'long as the result is kept; without it, "b64_json".',
    )
    stream: bool | None = Field(
        default=None,
        description="true or false: whether the answer is a stream of server-sent events; without it, false.",
    )
    partial_images: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PREVIEWS,
        description=f"an integer from 0 to {MAX_PREVIEWS}: previews of each image on its way, the first of its base "
        "alone; without it, 0.",
    )
    output_format: OutputFormat | None = Field(
        default=None, description='"png", "webp" or "jpeg", the files\' type; without it, "png".'
    )
    seed: int | None = Field(
        default=None,
        description=f"an integer from 0 to {MAX_SEED} that fixes the noise; without it, one is drawn.",
    )
    first_index: int | None = Field(
        default=None,
        description=f"an integer from 0 to {MAX_INDEX}: the index of the first image, so that n = 1 makes one image "
        "of a larger request with the same seed alone; without it, 0.",
    )
    reproducibility: Reproducibility | None = Field(
        default=None,
        description='"strict": the same request gives the same bytes whatever else is in the batch, for as long as a '
        'worker has the fingerprint that the answer names; "fast": the same picture, but for rounding; without it, '
        '"strict" where the worker measured that it costs little.',
    )
    num_steps: int | None = Field(
        default=None,
        description="denoising steps of both stages together, an integer from 2 to the model's "
        "max_num_steps; without it, the model's default.",
    )
    guidance_scale: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="how strongly to follow the class, a number from 0 to the model's max_guidance_scale, "
        "where 1 is no guidance; without it, the model's default.",
    )
    priority: Annotated[Priority, Field(strict=False)] | None = Field(
        default=None, description='"high", "normal" or "low": who is claimed first; without it, "normal".'
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
        description=f"seconds that queue and execution may take together, a number above 0 and up to "
        f"{MAX_TIMEOUT_S:g}; the job is dropped once it cannot end in time.",
    )
    on_disconnect: Literal["cancel", "finish"] | None = Field(
        default=None,
        description='"cancel" or "finish": what becomes of the job when its caller goes away; without it, "finish" '
        'with an Idempotency-Key and "cancel" otherwise.',
    )
    cache: bool | None = Field(
        default=None,
        description="true or false: whether the result of an identical job (same seed and all) may be the answer; "
        "without it, true.",
    )
    size: str | None = Field(
        default=None, max_length=20, description='"auto" or the model\'s own size, such as "32x32".'
    )
    quality: str | None = Field(default=None, max_length=64, description=_no_op("a string"))
    background: str | None = Field(default=None, max_length=64, description=_no_op("a string"))
    style: str | None = Field(default=None, max_length=64, description=_no_op("a string"))
    moderation: str | None = Field(default=None, max_length=64, description=_no_op("a string"))
    webhook_url: str | None = Field(
        default=None,
        max_length=2000,
        description="an address with https:// or http:// that is public; it is told of the job's end, where the "
        "operator has set MSF_WEBHOOK_SECRET.",
    )
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="an integer from 0 to 100: the quality of webp and jpeg files, png has none; "
        "without it, 100 (webp: lossless) and for jpeg 92.",
    )
    user: str | None = Field(
        default=None, max_length=256, description="a string; the users of one API key or address take turns."
    )


class Image(BaseModel):
    b64_json: str | None = Field(default=None, description="The encoded file in base64.")
    url: str | None = Field(default=None, description="Where the file is, for a while.")
    index: int = Field(description="The sample's index: with the seed, it fixes this image.")

    @model_serializer(mode="wrap")
    def _without_the_other(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """OpenAI's clients take what is there for what was asked for."""
        return {name: value for name, value in serialize(self).items() if value is not None}


class ImagesResponse(BaseModel):
    """OpenAI's answer, with all that is needed to make the same images again."""

    created: int = Field(description="Unix seconds.")
    data: list[Image] = Field(description="In the order of their indices.")
    model: str = Field(description="The model's name, without its version.")
    version: str = Field(description="The version that made them.")
    seed: int = Field(description="The one that was asked for, or else drawn.")
    num_steps: int = Field(description="Of both stages together.")
    guidance_scale: float = Field(description="1 is no guidance.")
    output_format: OutputFormat = Field(description="The files' type.")
    job_id: str = Field(description="For `GET /v1/jobs/{job_id}`, and in the logs of servers and workers.")
    cached: bool = Field(description="Whether an identical job made these images.")
    reproducibility: Reproducibility | None = Field(description="How they were made.")
    fingerprint: str | None = Field(description="What a strict request's bytes depend on beside the request itself.")
    timings: Timings


class JobObject(BaseModel):
    """A job; times are Unix seconds."""

    id: str = Field(description="What its address ends in.")
    object: Literal["job"] = "job"
    status: JobState
    created_at: float = Field(description="When it was admitted.")
    deadline_at: float | None = Field(description="When its timeout_s is over; null: it has none.")
    finished_at: float | None = Field(description="When it reached its end; null: it has not.")
    attempt: int = Field(description="How many workers have taken it up so far.")
    spec: JobSpec
    priority: Priority
    timings: Timings | None = Field(description="Once it has succeeded.")
    progress: Progress | None = Field(description="How far it is, if somebody watches its events.")
    provenance: Provenance | None = Field(description="What made the images.")
    webhook: Delivery | None = Field(description="How its webhook has fared, once it was tried.")
    error: JobError | None = Field(description="Why it failed, if it did.")
    data: list[Image] | None = Field(description="The images, once it has succeeded.")


class JobList(BaseModel):
    """The newest first; `after` takes the id of the last one."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class QueuedEvent(BaseModel):
    type: Literal["queued"] = "queued"
    job_id: str
    position: int = Field(description="How many jobs in the queue are older; fair shares may let others pass.")


class ProgressEvent(Progress):
    type: Literal["progress"] = "progress"
    job_id: str
    attempt: int
    num_samples: int


class PreviewEvent(BaseModel):
    type: Literal["partial_image"] = "partial_image"
    job_id: str
    index: int = Field(description="The sample's index.")
    partial_image_index: int = Field(description="From 0, which is the base alone.")
    b64_json: str
    output_format: OutputFormat


class Usage(BaseModel):
    """OpenAI's; nothing is counted in tokens here."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: dict[str, int] = {"image_tokens": 0, "text_tokens": 0}


class _ImageEvent(BaseModel):
    b64_json: str
    created_at: int = Field(description="Unix seconds.")
    size: str
    quality: str
    background: str
    output_format: OutputFormat
    image_index: int = Field(description="Which of the request's n images, from 0.")


class PartialImageEvent(_ImageEvent):
    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="From 0, which is the base alone.")


class CompletedEvent(_ImageEvent):
    """OpenAI's, with all that is needed to make the same image again."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage
    model: str
    version: str
    seed: int
    index: int
    num_steps: int
    guidance_scale: float
    job_id: str
    cached: bool
    timings: Timings


class ModelObject(BaseModel):
    """OpenAI's model object, with what a request to it may ask for."""

    id: str = Field(description='"name:version", what a request\'s `model` takes.')
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds: when it was registered first.")
    owned_by: str = "msf-serve"
    name: str = Field(description="The model's, without its version.")
    version: str = Field(description="A whole number; the highest that is served is the default.")
    served: bool = Field(description="Whether a worker serves it now; requests to it get 503 otherwise.")
    description: str = Field(description="What it makes.")
    labels: tuple[str, ...] = Field(description="Class names; a class's id is its place here, from 0.")
    image_size: int = Field(description="Pixels along one side.")
    image_channels: int = Field(description="1: grey, 3: colour, 4: with transparency.")
    default_num_steps: int = Field(description="Of both stages together.")
    max_num_steps: int = Field(description="The most that a request may ask for.")
    default_guidance_scale: float = Field(description="1 is no guidance.")
    max_guidance_scale: float = Field(description="The most that a request may ask for.")
    max_n: int = Field(description="The most images of one request.")
    fingerprint: str = Field(description="Of the worker that registered last: what its images' bytes depend on.")
    strict_cost: float | None = Field(
        description="What a strict step batch takes more there at worst, as a share; null: it runs no strict jobs."
    )


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class KeyUsage(BaseModel):
    """One API key: its limits, and what it has used since its first request."""

    name: str
    requests: int = Field(description="Requests that passed the limits.")
    refused: int = Field(description="Requests that a limit refused.")
    samples: int = Field(description="Images of accepted jobs.")
    sample_steps: int = Field(description="The same, times their steps: the work that was asked of the device.")
    requests_per_minute: int | None = Field(description="Its limit; null: none.")
    samples_per_day: int | None = Field(description="Its limit; null: none.")


class UsageList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyUsage]


REFUSALS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Every error has this shape."},
    400: {
        "model": ErrorResponse,
        "description": "A field or the body is wrong; the message says what is allowed.",
    },
    401: {"model": ErrorResponse, "description": "No API key, or one that is not known."},
    403: {"model": ErrorResponse, "description": "The API key has not the scope for this."},
    404: {"model": ErrorResponse, "description": "No such model, version or job; or the job is another key's."},
    409: {"model": ErrorResponse, "description": "The Idempotency-Key stands for another request."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    429: {
        "model": ErrorResponse,
        "description": "The queue is full, or a limit of the key is used up; `Retry-After` says when to ask again.",
    },
    499: {"model": ErrorResponse, "description": "The job was cancelled by someone else."},
    500: {"model": ErrorResponse, "description": "The job failed; `code` says how."},
    503: {"model": ErrorResponse, "description": "Draining, Redis is away, or no worker serves the model."},
    504: {"model": ErrorResponse, "description": "The job cannot end, or has not ended, within its timeout_s."},
}
