"""Orders: request bodies that were checked against a model and completed with defaults. Pure; nothing is admitted."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import MAX_INDEX, MAX_SEED, JobSpec, ModelInfo, Terms
from msf_scheduler.queue import Idempotency
from msf_server.callers import Caller
from msf_server.catalog import Availability
from msf_server.class_names import allowed_classes, find_class, label_id
from msf_server.errors import ApiError, InvalidRequest, quoted
from msf_server.schemas.images import ImageRequest, Quality
from msf_server.settings import ServerSettings
from msf_server.ssrf import AddressRefused, check_url

MAX_IDEMPOTENCY_KEY = 255

# Steps of a quality over the model's default; all others have the default.
_STEPS_FACTOR: Mapping[Quality, float] = {"low": 0.5, "high": 2.0, "hd": 2.0, "xhigh": 3.0, "max": 4.0}

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Order:
    """A valid request, ready to be submitted as a job."""

    caller: Caller
    model: ModelInfo
    spec: JobSpec
    terms: Terms
    idempotency: Idempotency | None
    bound_to: str | None  # fingerprint of the only workers that may run a strict job
    share_under: str | None  # fingerprint under which identical jobs share one result; None: not shared
    finish_alone: bool  # continue when the caller disconnects


def make_order(
    body: ImageRequest,
    model: ModelInfo,
    availability: Availability,
    caller: Caller,
    settings: ServerSettings,
    *,
    idempotency_key: str | None = None,
    finish_alone: bool = False,
) -> Order:
    """Check `body` against what `model` and `settings` allow, and fill in the defaults.

    `finish_alone` applies unless the body or an idempotency key says otherwise. Raises InvalidRequest for the first
    value that is not allowed, ApiError if no worker can run the job.
    """
    spec = _spec(body, model, _max_images(caller, settings))
    _check_sample_steps(spec, _max_sample_steps(caller, settings))
    if not availability.is_served:
        raise ApiError(f"No worker serves {model.name}:{model.version} now.", code=ErrorCode.NO_WORKER)
    bound_to = _strict_fingerprint(model, availability) if spec.reproducibility == "strict" else None
    is_shared = body.cache is not False and body.seed is not None
    is_kept = idempotency_key is not None or finish_alone
    return Order(
        caller=caller,
        model=model,
        spec=spec,
        idempotency=_idempotency(idempotency_key, body),
        bound_to=bound_to,
        share_under=(bound_to or availability.fingerprint) if is_shared else None,
        finish_alone=is_kept if body.on_disconnect is None else body.on_disconnect == "finish",
        terms=_terms(body, caller, settings),
    )


def num_steps_by_quality(model: ModelInfo) -> dict[Quality, int]:
    """Return the number of steps that each quality stands for."""
    return {
        quality: min(
            model.max_num_steps,
            max(model.min_num_steps, round(_STEPS_FACTOR.get(quality, 1.0) * model.default_num_steps)),
        )
        for quality in get_args(Quality)
    }


def _max_images(caller: Caller, settings: ServerSettings) -> int:
    """Return the most images of one request; one that exceeds its key's daily quota could never be admitted."""
    quota = caller.key.samples_per_day if caller.key else None
    return min(settings.max_images_per_request, quota or MAX_INDEX)


def _max_sample_steps(caller: Caller, settings: ServerSettings) -> int:
    limit = caller.key.concurrent_sample_steps if caller.key else None
    return min(settings.max_sample_steps, limit or settings.max_sample_steps)


def _check_sample_steps(spec: JobSpec, limit: int) -> None:
    if spec.num_samples * spec.num_steps <= limit:
        return
    param, value, other, highest = "n", spec.num_samples, f"num_steps {spec.num_steps}", limit // spec.num_steps
    if highest == 0:
        param, value, other, highest = "num_steps", spec.num_steps, "n 1", limit
    raise InvalidRequest(
        f"Invalid {param}: {value}. Allowed with {other}: at most {highest}, as n x num_steps must not exceed {limit}.",
        param=param,
    )


def _spec(body: ImageRequest, model: ModelInfo, max_images: int) -> JobSpec:
    steps_field, num_steps = _value_of(body, "num_steps", "num_inference_steps")
    scale_field, guidance_scale = _value_of(body, "guidance_scale", "true_cfg_scale", "cfg_scale")
    scale = _within(scale_field, guidance_scale, 0.0, model.default_guidance_scale, model.max_guidance_scale)
    return JobSpec(
        model=model.name,
        version=model.version,
        label=label_id(body.prompt, model),
        num_samples=_within("n", body.n, 1, default=1, highest=max_images),
        seed=_within("seed", body.seed, 0, default=secrets.randbelow(MAX_SEED + 1), highest=MAX_SEED),
        first_index=_within("first_index", body.first_index, 0, default=0, highest=MAX_INDEX),
        num_steps=_within(
            steps_field,
            num_steps,
            model.min_num_steps,
            num_steps_by_quality(model)[body.quality or "auto"],
            model.max_num_steps,
        ),
        guidance_scale=scale,
        negative_label=_negative_label(body.negative_prompt, model, scale),
        reproducibility=body.reproducibility,
        output_format=body.output_format or "png",
        output_compression=body.output_compression if body.output_format in ("webp", "jpeg") else None,
    )


def _negative_label(name: str | None, model: ModelInfo, guidance_scale: float) -> int | None:
    """Return the class to steer away from; None, as for no guidance at scale 1, stands for the null label."""
    if not name:
        return None
    if not model.takes_negative:
        raise InvalidRequest(
            f'Invalid negative_prompt: {quoted(name)}. Allowed: "", as {model.name} was distilled without.',
            param="negative_prompt",
        )
    label = find_class(name, model.labels)
    if label is None:
        raise InvalidRequest(
            f"Invalid negative_prompt: unknown class {quoted(name)}. {allowed_classes(name, model.labels)}",
            param="negative_prompt",
            code=ErrorCode.UNKNOWN_CLASS,
        )
    return None if guidance_scale == 1 else label


def _value_of(body: ImageRequest, *names: str) -> tuple[str, Any]:
    """Return the first of a parameter's names that was sent, with its value. Raises InvalidRequest if values differ."""
    sent = [(name, value) for name in names if (value := getattr(body, name)) is not None]
    name, value = next(iter(sent), (names[0], None))
    for other_name, other in sent:
        if other != value:
            raise InvalidRequest(
                f"Invalid {other_name}: {quoted(other)}. Allowed: {quoted(value)}, as {name} is the same parameter.",
                param=other_name,
            )
    return name, value


def _within(param: str, value: Number | None, lowest: Number, default: Number, highest: Number) -> Number:
    if value is None:
        return default
    if not lowest <= value <= highest:
        raise InvalidRequest(f"Invalid {param}: {quoted(value)}. Allowed: {lowest} to {highest}.", param=param)
    return value


def _strict_fingerprint(model: ModelInfo, availability: Availability) -> str:
    if availability.strict_fingerprint is not None:
        return availability.strict_fingerprint
    if model.strict_cost is None:
        raise InvalidRequest(
            f'Invalid reproducibility: "strict". Allowed: "fast", as no batch size of {model.name}:{model.version} '
            "keeps an image independent of the rest of its batch.",
            param="reproducibility",
            code=ErrorCode.STRICT_UNAVAILABLE,
        )
    raise ApiError(f"No worker runs strict jobs of {model.name}:{model.version} now.", code=ErrorCode.NO_WORKER)


def _idempotency(key: str | None, body: ImageRequest) -> Idempotency | None:
    if key is None:
        return None
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"Invalid Idempotency-Key: {quoted(key)}. Allowed: 1 to {MAX_IDEMPOTENCY_KEY} characters.",
            param="Idempotency-Key",
        )
    return Idempotency(key, body.model_dump_json(exclude_none=True).encode())


def _terms(body: ImageRequest, caller: Caller, settings: ServerSettings) -> Terms:
    return Terms(
        priority=body.priority or Terms().priority,
        tenant=caller.tenant,
        user=body.safety_identifier or body.user or "",
        weight=(caller.key and caller.key.weight) or settings.tenant_weights.get(caller.tenant, 1.0),
        timeout_s=body.timeout_s or settings.request_timeout_s,
        num_previews=body.partial_images or 0,
        webhook_url=_webhook_url(body.webhook_url, settings),
    )


def _webhook_url(url: str | None, settings: ServerSettings) -> str | None:
    if url is None:
        return None
    if settings.webhook_secret is None:
        message = "Invalid webhook_url. Allowed: none, as the operator has not set MSF_WEBHOOK_SECRET."
        raise InvalidRequest(message, param="webhook_url", code=ErrorCode.WEBHOOKS_OFF)
    try:
        check_url(url, settings.webhook_networks, settings.webhook_ports)
    except AddressRefused as error:
        message = f"Invalid webhook_url: {quoted(url)}; {error}. Allowed: an http or https URL of a public address."
        raise InvalidRequest(message, param="webhook_url") from error
    return url
