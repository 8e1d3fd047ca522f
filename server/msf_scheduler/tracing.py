"""OpenTelemetry spans of servers and workers, exported over OTLP/HTTP where an endpoint is configured.

A trace runs from the caller's `traceparent` (W3C Trace Context) through the server into the job's record, and
continues in the worker that ran it. Ids belong here and in logs, never in metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor

SCOPE = "msf_serve"
ENDPOINT_PATTERN = r"^https?://[^/\s]+(/\S*)?$"


class TracingUnavailable(Exception):
    """A module that tracing needs is not installed."""

    def __init__(self, module: str | None) -> None:
        super().__init__(f"tracing needs {module}: pip install 'msf-serve[tracing]'")


class Tracing:
    """One per process. `processor` is for tests; otherwise spans go to `endpoint` in batches."""

    def __init__(self, service: str, endpoint: str, processor: SpanProcessor | None = None) -> None:
        """`endpoint` is an OTLP/HTTP receiver's base URL. Raises TracingUnavailable."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise TracingUnavailable(error.name) from error
        self.provider = TracerProvider(resource=Resource.create({"service.name": service}))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self.provider.add_span_processor(processor or BatchSpanProcessor(exporter))
        self._propagator = TraceContextTextMapPropagator()
        self.tracer = self.provider.get_tracer(SCOPE)

    def extract(self, headers: Mapping[str, str]) -> Context:
        """Return the caller's context, from its `traceparent` and `tracestate`."""
        return self._propagator.extract(headers)

    def set_attribute(self, name: str, value: str) -> None:
        """Set an attribute of the current span, if there is one."""
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute(name, value)

    def traceparent(self) -> str | None:
        """Return the `traceparent` of the current span, or None outside any."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier.get("traceparent")

    def close(self) -> None:
        """Export the spans that are still queued."""
        self.provider.shutdown()
