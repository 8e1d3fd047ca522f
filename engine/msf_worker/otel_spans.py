"""OpenTelemetry spans of a job, recorded when it has ended: queue, stages and encoding."""

from __future__ import annotations

import time

from opentelemetry.trace import set_span_in_context

from msf_scheduler.tracing import Tracing, job_attributes
from msf_worker.active_job import ActiveJob


def record_job(tracing: Tracing, job: ActiveJob, encode_times: tuple[float, float]) -> None:
    """Record a job whose request was traced; `encode_times` are the start and end of encoding, in monotonic seconds.

    A stage's span runs from its first step to its last, waits included.
    """
    if job.terms.traceparent is None:
        return
    offset_s = time.time() - time.monotonic()

    def nanoseconds(monotonic_s: float) -> int:
        return int(1e9 * (monotonic_s + offset_s))

    parent = tracing.extract({"traceparent": job.terms.traceparent})
    attributes = job_attributes(job.claim.job) | {"msf.attempt": job.claim.job.attempt}
    job_span = tracing.tracer.start_span("job", parent, attributes=attributes, start_time=nanoseconds(job.arrived_at))
    context = set_span_in_context(job_span)
    intervals = {
        "queue": (job.arrived_at, job.started_at or job.claimed_at),
        **{stage.value: (times.started_at, times.ended_at) for stage, times in job.stage_times.items()},
        "encode": encode_times,
    }
    for name, (started_at, ended_at) in intervals.items():
        span = tracing.tracer.start_span(name, context, start_time=nanoseconds(started_at))
        span.end(nanoseconds(ended_at))
    job_span.end(nanoseconds(time.monotonic()))
