"""`stream: true`: OpenAI's image events, from the preview of the base to each finished image."""

from __future__ import annotations

import asyncio
import math
import time
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import anyio

from msf_scheduler.errors import SchedulerError, ServerStopping
from msf_scheduler.job_events import JobWatcher, StoredPreview
from msf_scheduler.jobs import JobRecord
from msf_server.errors import ApiError, translate
from msf_server.large_results import off_loop_if_large
from msf_server.metrics import Metrics
from msf_server.request_log import RequestLog
from msf_server.schemas.images import CompletedEvent, ImageRequest, PartialImageEvent, TokenUsage, size_of
from msf_server.sse import error_frame, frame
from msf_server.submission import LATE_S, PendingJob, Submission


async def image_events(
    body: ImageRequest,
    pending: PendingJob,
    submission: Submission,
    watcher: JobWatcher,
    log: RequestLog,
    metrics: Metrics,
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a job from its admission to its end.

    If the caller disconnects, the job is cancelled unless it is to finish alone.
    """
    common = {
        "size": size_of(pending.order.model),
        "quality": body.quality or "auto",
        "background": body.background or "auto",
        "output_format": pending.order.spec.output_format,
    }
    job, is_waiting = pending.job, True
    late_at = time.monotonic() + (math.inf if job.terms.timeout_s is None else job.terms.timeout_s + LATE_S)
    try:
        async with aclosing(watcher.follow(job.id)) as reports:
            async for report in reports:
                if not report.job.state.is_terminal:
                    submission.drain.check_cut_short()
                if report.previews and is_waiting:
                    is_waiting = False
                    metrics.observe_first_preview(log)
                yield b"".join(_preview(preview, report.job, common) for preview in report.previews)
                if time.monotonic() > late_at:
                    await submission.expire(job.id)
        job, images = await submission.result(job.id)
        log.queue_ms = job.timings.queue_ms if job.timings else None
        for position, image in enumerate(images):
            yield await off_loop_if_large([image], partial(_completed, position, image, job, common))
            await asyncio.sleep(0)  # others' turn
    except (ApiError, SchedulerError) as error:
        if isinstance(error, ServerStopping):
            await submission.abandon(pending)
        log.outcome = translate(error).outcome
        yield error_frame(error)
    except BaseException:
        log.outcome = "client_gone"
        with anyio.CancelScope(shield=True):
            await submission.abandon(pending)
        raise


def _preview(stored: StoredPreview, job: JobRecord, common: dict[str, str]) -> bytes:
    event = PartialImageEvent(
        **common,
        created_at=int(time.time()),
        b64_json=b64encode(stored.file).decode(),
        partial_image_index=stored.preview.number,
        image_index=stored.preview.index - job.spec.first_index,
    )
    return frame(event.type, event)


def _completed(position: int, image: bytes, job: JobRecord, common: dict[str, str]) -> bytes:
    spec = job.spec
    assert job.timings is not None
    event = CompletedEvent(
        **common,
        created_at=int(time.time()),
        b64_json=b64encode(image).decode(),
        image_index=position,
        usage=TokenUsage(),
        model=spec.model,
        version=spec.version,
        seed=spec.seed,
        index=spec.first_index + position,
        num_steps=spec.num_steps,
        guidance_scale=spec.guidance_scale,
        job_id=job.id,
        cached=job.images_of is not None,
        timings=job.timings,
    )
    return frame(event.type, event)
