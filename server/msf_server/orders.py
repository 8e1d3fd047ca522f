"""From a validated request to an accepted job: who asks, on which terms, and what may be refused at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import Request

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.errors import QueueUnavailable
from msf_scheduler.jobs import MAX_INDEX, JobRecord, JobSpec, ModelInfo, Terms
from msf_scheduler.queue import Idempotency
from msf_server.api_keys import ApiKey
from msf_server.dependencies import ServerContext
from msf_server.errors import InvalidRequest, Unavailable, shown
from msf_server.resolve import resolve
from msf_server.schemas import ImageRequest
from msf_server.ssrf import AddressRefused, check_url

MAX_IDEMPOTENCY_KEY = 255
FILE_OVERHEAD_BYTES = 8192  # headers and text chunks
WORST_COMPRESSION = 1.05  # of pixels that are pure noise


@dataclass(frozen=True)
class Order:
    """A request that was found valid, ready to be admitted."""

    model: ModelInfo
    spec: JobSpec
    terms: Terms
    caller: ApiKey | None
    idempotency: Idempotency | None
    bound_to: str | None  # the fingerprint that is to make a strict job's bytes
    shares_results: bool
    finish_alone: bool  # go on when the caller has gone away


async def read_order(
    body: ImageRequest,
    request: Request,
    context: ServerContext,
    model: ModelInfo | None = None,
    *,
    finish_alone: bool = False,
) -> Order:
    """Of `model` where the caller has found it; `finish_alone` unless the body says otherwise.

    Raises InvalidRequest, ModelNotFound, Unavailable, QueueUnavailable.
    """
    model = request.state.model = model or await context.catalog.find(body.model)
    caller: ApiKey | None = request.state.caller
    quota = caller.samples_per_day if caller else None  # more than this could never be admitted
    spec = resolve(body, model, min(context.settings.max_images_per_request, quota or MAX_INDEX))
    if context.draining:
        raise Unavailable("This server is shutting down.", code=ErrorCode.DRAINING)
    if not context.catalog.is_served(model):
        raise Unavailable(f"No worker serves {model.name}:{model.version} now.", code=ErrorCode.NO_WORKER)
    idempotency = _idempotency(body, request)
    return Order(
        model=model,
        spec=spec,
        terms=_terms(body, request, context),
        caller=caller,
        idempotency=idempotency,
        bound_to=_bound_to(spec, model, context),
        shares_results=body.cache is not False and body.seed is not None,
        finish_alone=(body.on_disconnect or ("finish" if idempotency or finish_alone else "cancel")) == "finish",
    )


async def admit(order: Order, context: ServerContext, *, job_id: str, reply_to: str | None) -> JobRecord:
    """Raises LimitExceeded, QueueFull, MemoryFull, DeadlineTooShort, IdempotencyConflict, QueueUnavailable."""
    model, spec = order.model, order.spec
    pixels = model.image_size**2 * model.image_channels
    num_files = spec.num_samples * (1 + order.terms.num_previews)
    async with _charged(order, context) as charge:
        started = time.perf_counter()
        job = await context.queue.admit(
            spec,
            order.terms,
            job_id=job_id,
            reply_to=reply_to,
            least_s=model.least.bound_s(spec.num_steps, spec.num_samples),
            result_bytes=num_files * round(pixels * WORST_COMPRESSION + FILE_OVERHEAD_BYTES),
            idempotency=order.idempotency,
            plan=(order.bound_to or context.catalog.fingerprint(model)) if order.shares_results else None,
            bound_to=order.bound_to,
        )
        context.metrics.round_trip_s.labels("admit").observe(time.perf_counter() - started)
        charge.is_due = job.id == job_id  # a repeated request costs no new samples
        if charge.is_due and job.images_of is None:
            context.metrics.observe_admission(spec)
    return job


@dataclass
class _Charge:
    is_due: bool = False


@asynccontextmanager
async def _charged(order: Order, context: ServerContext) -> AsyncIterator[_Charge]:
    """The key is charged first, as limits must hold for requests that come together; refused samples are given back.

    Not so where nobody knows whether the job was admitted: the worst is a quota that ends a few samples early.
    """
    charge = _Charge()
    if order.caller is None:
        yield charge
        return
    name, spec = order.caller.name, order.spec
    cost = {"samples": spec.num_samples, "sample_steps": spec.num_samples * spec.num_steps}
    await context.meter.charge(name, order.caller.limits, **cost)
    try:
        yield charge
    except QueueUnavailable:
        charge.is_due = True
        raise
    finally:
        if not charge.is_due:
            with suppress(QueueUnavailable):
                await context.meter.refund(name, **cost)


def _terms(body: ImageRequest, request: Request, context: ServerContext) -> Terms:
    caller: ApiKey | None = request.state.caller
    tenant = tenant_of(request)
    return Terms(
        priority=body.priority or Terms().priority,
        tenant=tenant,
        user=body.user or "",
        weight=(caller and caller.weight) or context.settings.tenant_weights.get(tenant, 1.0),
        timeout_s=body.timeout_s or context.settings.request_timeout_s,
        num_previews=body.partial_images or 0,
        webhook_url=_webhook_url(body, context),
        traceparent=context.tracing.traceparent() if context.tracing else None,
    )


def _webhook_url(body: ImageRequest, context: ServerContext) -> str | None:
    if body.webhook_url is None:
        return None
    if context.settings.webhook_secret is None:
        message = "Invalid webhook_url. Allowed: none, as the operator has not set MSF_WEBHOOK_SECRET."
        raise InvalidRequest(message, param="webhook_url", code=ErrorCode.WEBHOOKS_OFF)
    try:
        check_url(body.webhook_url, context.settings.webhook_networks)
    except AddressRefused as error:
        message = f"Invalid webhook_url: {shown(body.webhook_url)}; {error}."
        raise InvalidRequest(f"{message} Allowed: a public address.", param="webhook_url") from error
    return body.webhook_url


def _bound_to(spec: JobSpec, model: ModelInfo, context: ServerContext) -> str | None:
    if spec.reproducibility != "strict":
        return None
    fingerprint = context.catalog.strict_fingerprint(model)
    if fingerprint is None and model.strict_cost is None:
        raise InvalidRequest(
            f'Invalid reproducibility: "strict". Allowed: "fast", as {model.name}:{model.version} is served with no '
            "batch size in which an image does not depend on its neighbours.",
            param="reproducibility",
            code=ErrorCode.STRICT_UNAVAILABLE,
        )
    if fingerprint is None:
        raise Unavailable(f"No worker serves {model.name}:{model.version} strictly now.", code=ErrorCode.NO_WORKER)
    return fingerprint


def tenant_of(request: Request) -> str:
    """The key's name. Where nobody checks keys, the digest of what is sent as one (a queue is no place for secrets), or
    the address.
    """
    caller: ApiKey | None = request.state.caller
    if caller is not None:
        return caller.name
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return f"key-{hashlib.sha256(key.strip().encode()).hexdigest()[:16]}"
    return f"address-{request.client.host if request.client else 'unknown'}"


def _idempotency(body: ImageRequest, request: Request) -> Idempotency | None:
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= MAX_IDEMPOTENCY_KEY:
        raise InvalidRequest(
            f"Invalid Idempotency-Key: {shown(key)}. Allowed: 1 to {MAX_IDEMPOTENCY_KEY} characters.",
            param="Idempotency-Key",
        )
    return Idempotency(key, body.model_dump_json(exclude_none=True).encode())
