"""A job's spans, told when it has ended: the queue, each stage, the encoding."""

from __future__ import annotations

import time

from opentelemetry.trace import set_span_in_context

from msf_scheduler.tracing import Tracing
from msf_worker.active_job import ActiveJob


def record_job(tracing: Tracing, job: ActiveJob, encoded_s: tuple[float, float]) -> None:
    """`encoded_s`: when the encoding began and ended, on the monotonic clock. A stage's span covers the waits in it."""
    record = job.claim.job
    if record.terms.traceparent is None:
        return
    offset_s = time.time() - time.monotonic()

    def nanoseconds(monotonic_s: float) -> int:
        return int(1e9 * (monotonic_s + offset_s))

    parent = tracing.extract({"traceparent": record.terms.traceparent})
    told: dict[str, str | int] = {
        "msf.job_id": job.id,
        "msf.model": f"{record.spec.model}:{record.spec.version}",
        "msf.num_samples": record.spec.num_samples,
        "msf.num_steps": record.spec.num_steps,
        "msf.attempt": record.attempt,
    }
    whole = tracing.tracer.start_span("job", parent, attributes=told, start_time=nanoseconds(job.arrived_at))
    inside = set_span_in_context(whole)
    parts = {
        "queue": (job.arrived_at, job.started_at or job.claimed_at),
        **{stage.value: times for stage, times in job.stage_times.items()},
        "encode": encoded_s,
    }
    for name, (began_at, ended_at) in parts.items():
        span = tracing.tracer.start_span(name, inside, start_time=nanoseconds(began_at))
        span.end(nanoseconds(ended_at))
    whole.end(nanoseconds(time.monotonic()))
