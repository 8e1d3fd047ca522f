"""OpenTelemetry spans of servers and workers, exported over OTLP/HTTP where an endpoint is configured.

A trace runs from the caller's `traceparent` (W3C Trace Context) through the server into the job's record, and
continues in the worker that ran it. Ids belong here and in logs, never in metrics.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from msf_scheduler.jobs import JobRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

SCOPE = "msf_serve"
TRACES_PATH = "/v1/traces"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?P<trace_id>[0-9a-f]{32})-[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})")
ENDPOINT_PATTERN = r"^https?://[^/\s]+(/\S*)?$"


def default_endpoint() -> str | None:
    """Return the endpoint that OpenTelemetry's own variables name, if they do not switch traces off."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def trace_id_of(traceparent: str | None) -> str | None:
    """Return the id of the trace that a `traceparent` belongs to, or None if it is not sampled."""
    match = _TRACEPARENT.fullmatch(traceparent or "")
    return match["trace_id"] if match and int(match["flags"], 16) & 1 else None


def job_attributes(job: JobRecord) -> dict[str, str | int]:
    """Describe a job in OpenTelemetry's conventions for generative AI, and in our own where they have no name."""
    spec, model = job.spec, f"{job.spec.model}:{job.spec.version}"
    return {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.provider.name": "msf_serve",
        "gen_ai.request.choice.count": spec.num_samples,
        "gen_ai.request.model": spec.model,
        "gen_ai.request.seed": spec.seed,
        "gen_ai.response.id": job.id,
        "gen_ai.response.model": model,
        "msf.job_id": job.id,
        "msf.model": model,
        "msf.num_samples": spec.num_samples,
        "msf.num_steps": spec.num_steps,
    }


class TracingUnavailable(Exception):
    """A module that tracing needs is not installed."""

    def __init__(self, module: str | None) -> None:
        super().__init__(f"tracing needs {module}: pip install 'msf-serve[tracing]'")


class Tracing:
    """One per process. `processor` is for tests; otherwise spans go to `endpoint` in batches."""

    def __init__(self, service: str, endpoint: str, processor: SpanProcessor | None = None) -> None:
        """`endpoint` is an OTLP/HTTP receiver's URL, with or without the path of traces. Raises TracingUnavailable.

        OpenTelemetry's variables for the service's name and attributes, the sampler, headers and batches apply.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingUnavailable(error.name) from error
        resource = Resource.create({"service.name": service, "service.version": version("msf-serve")})
        self.provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/').removesuffix(TRACES_PATH)}{TRACES_PATH}")
        self.provider.add_span_processor(processor or BatchSpanProcessor(exporter))
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self.provider.get_tracer(SCOPE)

    def extract(self, headers: Mapping[str, str]) -> Context:
        """Return the caller's context, from its `traceparent` and `tracestate`."""
        return self._propagator.extract(headers)

    def set_attributes(self, attributes: Mapping[str, str | int]) -> None:
        """Set attributes of the current span, if there is one."""
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes(attributes)

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the current span, or None outside any."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Export the spans that are still queued."""
        self.provider.shutdown()
