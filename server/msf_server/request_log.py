"""Facts about one request that its route finds out, and that the log, metrics and traces report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import Scope

from msf_scheduler.jobs import JobSpec, ModelInfo
from msf_server.api_keys import ApiKey


@dataclass
class RequestLog:
    """Mutable, one per request; created by the outermost middleware."""

    request_id: str
    started_at: float = field(default_factory=time.perf_counter)
    trace_id: str | None = None  # of a request that is traced
    api_key: ApiKey | None = None  # None: the path or the whole service is open
    model: ModelInfo | None = None  # None: the request was refused before its model was known
    spec: JobSpec | None = None  # of the job that it asks for
    job_id: str | None = None
    queue_ms: float | None = None  # that the job waited; None: the request did not wait for it
    outcome: str = "succeeded"  # label of the metrics
    error_code: str | None = None

    def fields(self) -> dict[str, str | int | float]:
        """Return what is known of the request, for a line of JSON."""
        spec, model, key = self.spec, self.model, self.api_key
        fields = {
            "outcome": None if self.error_code or self.outcome == "succeeded" else self.outcome,
            "error": self.error_code,
            "model": f"{model.name}:{model.version}" if model else None,
            "num_images": spec.num_samples if spec else None,
            "num_steps": spec.num_steps if spec else None,
            "queue_ms": None if self.queue_ms is None else round(self.queue_ms, 1),
            "key": key.name if key else None,
            "job_id": self.job_id,
            "request_id": self.request_id,
            "trace_id": self.trace_id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def text(self) -> str:
        """Return the same for people."""
        fields = self.fields()
        parts = [str(fields[name]) for name in ("error", "outcome", "model") if name in fields]
        if self.spec:
            parts.append(f"{self.spec.num_samples} x {self.spec.num_steps} steps")
        if self.queue_ms is not None:
            parts.append(f"queued {fields['queue_ms']} ms")
        ids = {"key": "key", "job": "job_id", "request": "request_id", "trace": "trace_id"}
        return ", ".join(parts + [f"{name} {fields[field]}" for name, field in ids.items() if field in fields])


def start_log(scope: Scope, request_id: str) -> RequestLog:
    """Attach an empty log to a request's scope."""
    log = RequestLog(request_id)
    scope.setdefault("state", {})["log"] = log
    return log


def log_of(scope: Scope) -> RequestLog:
    """Return the log that `start_log` attached."""
    log: RequestLog = scope["state"]["log"]
    return log
