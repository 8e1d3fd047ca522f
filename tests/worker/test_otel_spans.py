from __future__ import annotations

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_trace_id
from redis.asyncio import Redis

from msf_engine.model_plans import ModelPlans
from msf_engine.repository import ModelVersion
from msf_scheduler.jobs import Terms
from msf_scheduler.tracing import Tracing
from tests.worker.support import SPEC, running

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_traced_job_has_a_span_for_each_part(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing("msf-worker", "http://unused", SimpleSpanProcessor(exporter))
    async with running(redis, version, plans, tracing=tracing) as worker:
        await worker.end_of(await worker.admit(SPEC, Terms(traceparent=PARENT)))
        await worker.end_of(await worker.admit(SPEC))  # not traced
    job_spans = {span.name: span for span in exporter.get_finished_spans()}
    assert list(job_spans) == ["queue", "base", "residual", "decode", "encode", "job"]
    assert {format_trace_id(span.context.trace_id) for span in job_spans.values()} == {PARENT.split("-")[1]}
    job = job_spans.pop("job")
    assert job.start_time is not None
    assert job.end_time is not None
    times = []
    for span in job_spans.values():
        assert span.parent is not None
        assert span.parent.span_id == job.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert job.start_time <= span.start_time <= span.end_time <= job.end_time
        times.append(span.start_time)
    assert times == sorted(times)
