"""Bodies of `/v1/images/generations`. A field's description says what it allows; the docs and errors quote it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from msf_scheduler.jobs import (
    MAX_INDEX,
    MAX_SEED,
    JobRecord,
    ModelInfo,
    OutputFormat,
    Priority,
    Reproducibility,
    Timings,
)
from msf_server.schemas.body import RequestBody, WholeNumber, whole

MAX_TIMEOUT_S = 3600.0
MAX_PREVIEWS = 3

_SIZE = r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$"
_IGNORED = "a string; accepted for OpenAI's clients and ignored."


def _optional(description: str, **constraints: Any) -> Any:
    return Field(default=None, description=description, **constraints)


def _within(lowest: int, highest: int | None = None) -> dict[str, Any]:
    """Return bounds for the schema alone: an order is checked against those of its model."""
    return {"json_schema_extra": {"minimum": lowest} | ({} if highest is None else {"maximum": highest})}


Quality = Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"]
_QUALITIES = ", ".join(f'"{quality}"' for quality in get_args(Quality))


def _text_of_id(value: object) -> object:
    number = whole(value)
    return str(number) if type(number) is int else value


class ImageRequest(RequestBody):
    """OpenAI's image request over classes; the fields from `seed` to `negative_prompt` are extensions."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "dress", "n": 4, "seed": 7, "num_steps": 12, "guidance_scale": 2.0}}
    )

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=200,
            description="a class name as a string (in any case and with any separators) or a class id; GET /v1/models "
            "lists the classes.",
        ),
        BeforeValidator(_text_of_id, json_schema_input_type=Annotated[str, Field(min_length=1, max_length=200)] | int),
    ]
    model: str | None = _optional(
        'a model of GET /v1/models as "name" (its newest version) or "name:version"; default: the first.',
        max_length=200,
    )
    n: WholeNumber | None = _optional(
        "number of images, an integer from 1 to the model's max_n; default: 1.", **_within(1)
    )
    response_format: Literal["b64_json", "url"] | None = _optional(
        '"b64_json": images inside the answer, or "url": signed URLs that work without a key for as long as the result '
        "is kept; default: both, or in a stream the images alone."
    )
    stream: bool | None = _optional("true or false: whether to answer with server-sent events; default: false.")
    partial_images: Annotated[int, Field(ge=0, le=MAX_PREVIEWS), BeforeValidator(whole)] | None = _optional(
        f"an integer from 0 to {MAX_PREVIEWS}: previews of each image, the first of its base alone if the "
        "model has two stages; default: 0."
    )
    output_format: OutputFormat | None = _optional('"png", "webp" or "jpeg": the file type; default: "png".')
    seed: WholeNumber | None = _optional(
        f"an integer from 0 to {MAX_SEED} that fixes the noise; default: random.", **_within(0, MAX_SEED)
    )
    first_index: WholeNumber | None = _optional(
        f"an integer from 0 to {MAX_INDEX}: the index of the first image, so that n = 1 regenerates a single image of "
        "a larger request with the same seed; default: 0.",
        **_within(0, MAX_INDEX),
    )
    reproducibility: Reproducibility | None = _optional(
        '"strict": the same request gives the same bytes whatever else is in the batch, for as long as a worker with '
        'the fingerprint in the answer exists; "fast": the same image up to rounding; default: "strict" where the '
        "worker measured that it costs little."
    )
    num_steps: WholeNumber | None = _optional(
        "denoising steps of all stages together, an integer from the model's min_num_steps to its max_num_steps; "
        "default: the model's for the requested quality.",
        **_within(1),
    )
    guidance_scale: float | None = _optional(
        "strength of the class, a number from 0 to the model's max_guidance_scale, where 1 means no guidance; "
        "default: the model's.",
        allow_inf_nan=False,
        **_within(0),
    )
    num_inference_steps: WholeNumber | None = _optional(
        "the same as num_steps; if both are sent, they must be equal.", **_within(1)
    )
    true_cfg_scale: float | None = _optional(
        "the same as guidance_scale; if both are sent, they must be equal.", allow_inf_nan=False, **_within(0)
    )
    cfg_scale: float | None = _optional(
        "the same as guidance_scale; if both are sent, they must be equal.", allow_inf_nan=False, **_within(0)
    )
    priority: Annotated[Priority, Field(strict=False)] | None = _optional(
        '"high", "normal" or "low": the order of claiming; default: "normal".'
    )
    timeout_s: float | None = _optional(
        f"seconds for queueing and execution together, a number above 0 and up to {MAX_TIMEOUT_S:g}; the job is "
        "dropped once it cannot end in time.",
        gt=0,
        le=MAX_TIMEOUT_S,
        allow_inf_nan=False,
    )
    on_disconnect: Literal["cancel", "finish"] | None = _optional(
        '"cancel" or "finish": the fate of the job when the caller disconnects; default: "finish" with an '
        'Idempotency-Key, otherwise "cancel".'
    )
    cache: bool | None = _optional(
        "true or false: whether the result of an identical job (same seed and parameters) may be returned; "
        "default: true."
    )
    negative_prompt: Annotated[
        str | None,
        Field(max_length=200),
        BeforeValidator(_text_of_id, json_schema_input_type=Annotated[str, Field(max_length=200)] | int | None),
    ] = _optional(
        'a class name or id that guidance steers away from, or "" for none; no effect at a guidance_scale of 1.'
    )
    size: str | None = _optional(
        '"auto" or WIDTHxHEIGHT, such as "1024x1024"; images have the model\'s own size, which the answer reports.',
        pattern=_SIZE,
    )
    quality: Quality | None = _optional(
        f"{_QUALITIES}: the number of steps unless num_steps is sent, see num_steps_by_quality of GET /v1/models; "
        'default: "auto".'
    )
    complexity: str | None = _optional(_IGNORED, max_length=64)
    background: str | None = _optional(_IGNORED, max_length=64)
    style: str | None = _optional(_IGNORED, max_length=64)
    moderation: str | None = _optional(_IGNORED, max_length=64)
    webhook_url: str | None = _optional(
        "a public https:// or http:// URL that is notified when the job ends; requires that the operator has set "
        "MSF_WEBHOOK_SECRET.",
        max_length=2000,
    )
    output_compression: Annotated[int, Field(ge=0, le=100), BeforeValidator(whole)] | None = _optional(
        "an integer from 0 to 100: the quality of webp and jpeg files, ignored for png; default: 100 for webp "
        "(lossless), 92 for jpeg."
    )
    user: str | None = _optional("a string; users of the same API key or address take turns.", max_length=256)
    safety_identifier: str | None = _optional(
        "a string; the same as user, and takes precedence unless it is empty.", max_length=256
    )


def _is_none(value: object) -> bool:
    return value is None


class Image(BaseModel):
    """One image, inside the answer or at a URL."""

    # The absent form is left out: OpenAI's clients take a field that is present for the one they requested.
    b64_json: str | None = Field(default=None, description="The encoded file in base64.", exclude_if=_is_none)
    url: str | None = Field(default=None, description="Signed URL of the file; it expires.", exclude_if=_is_none)
    index: int = Field(description="Index of the sample: with the seed, it fixes this image.")


def size_of(model: ModelInfo) -> str:
    """Return the size of a model's images as OpenAI writes it."""
    return f"{model.image_size}x{model.image_size}"


def images_of(job: JobRecord, files: Sequence[bytes], urls: Sequence[str]) -> Iterator[Image]:
    """Describe the images of `job` by their files, their URLs or both, each in the order of its samples."""
    for index, file, url in zip_longest(job.spec.indices, files, urls):
        yield Image(b64_json=file and b64encode(file).decode(), url=url, index=index)


class ImagesResponse(BaseModel):
    """OpenAI's answer, with everything that is needed to generate the same images again."""

    created: int = Field(description="Unix seconds.")
    data: list[Image] = Field(description="In the order of their indices.")
    model: str = Field(description="Name of the model, without version.")
    version: str = Field(description="Version of the model.")
    seed: int = Field(description="The requested seed, or the one that was drawn.")
    num_steps: int = Field(description="Total of all stages.")
    guidance_scale: float = Field(description="1 means no guidance.")
    output_format: OutputFormat = Field(description="File type.")
    size: str = Field(description="Width and height in pixels: the model's own, whatever size was requested.")
    job_id: str = Field(description="For `GET /v1/jobs/{job_id}`, and in the logs of servers and workers.")
    cached: bool = Field(description="Whether an identical job made these images.")
    reproducibility: Reproducibility | None = Field(description="How they were made.")
    fingerprint: str | None = Field(description="What a strict result depends on in addition to the request.")
    timings: Timings

    @classmethod
    def of(cls, job: JobRecord, model: ModelInfo) -> Self:
        """Describe `job` of `model`, which has succeeded, without its images."""
        spec, provenance = job.spec, job.provenance
        assert job.timings is not None
        return cls(
            created=int(job.finished_at or 0),
            data=[],
            model=spec.model,
            version=spec.version,
            seed=spec.seed,
            num_steps=spec.num_steps,
            guidance_scale=spec.guidance_scale,
            output_format=spec.output_format,
            size=size_of(model),
            job_id=job.id,
            cached=job.images_of is not None,
            reproducibility=provenance.reproducibility if provenance else None,
            fingerprint=provenance.fingerprint if provenance else None,
            timings=job.timings,
        )


class TokenUsage(BaseModel):
    """OpenAI's token counts; always zero here."""

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
    image_index: int = Field(description="Position among the request's n images, from 0.")


class PartialImageEvent(_ImageEvent):
    """A preview of one image."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(description="Counts from 0.")


class CompletedEvent(_ImageEvent):
    """OpenAI's event, with everything that is needed to generate the same image again."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: TokenUsage
    model: str
    version: str
    seed: int
    index: int
    num_steps: int
    guidance_scale: float
    job_id: str
    cached: bool
    timings: Timings
