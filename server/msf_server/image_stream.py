"""`stream: true`: OpenAI's image events, the base's preview first, each image's own end last."""

from __future__ import annotations

import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
from fastapi import Request

from msf_scheduler.errors import SchedulerError
from msf_scheduler.job_events import StoredPreview
from msf_scheduler.jobs import JobRecord
from msf_server.dependencies import ServerContext
from msf_server.errors import ApiError, translate
from msf_server.orders import Order
from msf_server.schemas import CompletedEvent, ImageRequest, PartialImageEvent, Usage
from msf_server.sse import Pulse, error_frame, frame
from msf_server.submission import LATE_S, Completed, cancel, completed


async def image_events(
    body: ImageRequest, job: JobRecord, order: Order, context: ServerContext, request: Request
) -> AsyncIterator[bytes]:
    """Frames from the job's admission to its end. A caller that goes away cancels it, unless it is to finish alone."""
    pulse = Pulse()
    try:
        async with aclosing(context.watcher.follow(job.id)) as following:
            async for news in following:
                job = news.job
                if beat := pulse.beat([_partial(each, body, order) for each in news.previews]):
                    yield beat
                if job.deadline_at is not None and time.time() > job.deadline_at + LATE_S:
                    await context.queue.expire(job.id)
        done = await completed(job.id, job.state, context)
        context.metrics.observe_job(order.model, done.timings, len(done.images), cached=done.is_cached)
        context.metrics.observe_images(order.model, len(done.images), cached=done.is_cached)
        yield b"".join(_completed(place, body, order, done) for place in range(len(done.images)))
    except (ApiError, SchedulerError) as error:
        request.state.outcome = translate(error).outcome
        yield error_frame(error)
    except BaseException:
        request.state.outcome = "client_gone"
        if not order.finish_alone:
            with anyio.CancelScope(shield=True):
                await cancel(job.id, context)
        raise


def _partial(stored: StoredPreview, body: ImageRequest, order: Order) -> bytes:
    shown = stored.preview
    event = PartialImageEvent(
        **_common(body, order),
        b64_json=b64encode(stored.file).decode(),
        partial_image_index=shown.number,
        image_index=shown.index - order.spec.first_index,
    )
    return frame(event.type, event)


def _completed(place: int, body: ImageRequest, order: Order, done: Completed) -> bytes:
    spec = done.job.spec
    event = CompletedEvent(
        **_common(body, order),
        b64_json=b64encode(done.images[place]).decode(),
        image_index=place,
        usage=Usage(),
        model=spec.model,
        version=spec.version,
        seed=spec.seed,
        index=spec.first_index + place,
        num_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        job_id=done.job.id,
        cached=done.is_cached,
        timings=done.timings,
    )
    return frame(event.type, event)


def _common(body: ImageRequest, order: Order) -> dict[str, object]:
    size = order.model.image_size
    return {
        "created_at": int(time.time()),
        "size": f"{size}x{size}",
        "quality": body.quality or "auto",
        "background": body.background or "auto",
        "output_format": order.spec.output_format,
    }
