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


async def test_a_job_tells_where_its_time_went(redis: Redis, version: ModelVersion, plans: ModelPlans) -> None:
    spans = InMemorySpanExporter()
    tracing = Tracing("msf-worker", "http://unused", SimpleSpanProcessor(spans))
    async with running(redis, version, plans, tracing=tracing) as worker:
        await worker.end_of(await worker.admit(SPEC, Terms(traceparent=PARENT)))
        await worker.end_of(await worker.admit(SPEC))  # nobody traces this one
    found = {span.name: span for span in spans.get_finished_spans()}
    assert list(found) == ["queue", "base", "residual", "decode", "encode", "job"]
    assert {format_trace_id(span.context.trace_id) for span in found.values()} == {PARENT.split("-")[1]}
    job = found.pop("job")
    assert job.start_time is not None
    assert job.end_time is not None
    times = []
    for span in found.values():
        assert span.parent is not None
        assert span.parent.span_id == job.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert job.start_time <= span.start_time <= span.end_time <= job.end_time
        times.append(span.start_time)
    assert times == sorted(times)
