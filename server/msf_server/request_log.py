"""Facts about one request that its route finds out, and that the log, metrics and traces report."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

from msf_scheduler.jobs import ModelInfo
from msf_server.api_keys import ApiKey


@dataclass
class RequestLog:
    """Mutable, one per request; created by the outermost middleware."""

    request_id: str
    api_key: ApiKey | None = None  # None: the path or the whole service is open
    model: ModelInfo | None = None  # None: the request was refused before its model was known
    job_id: str | None = None
    outcome: str = "succeeded"  # label of the metrics


def start_log(scope: Scope, request_id: str) -> RequestLog:
    """Attach an empty log to a request's scope."""
    log = RequestLog(request_id)
    scope.setdefault("state", {})["log"] = log
    return log


def log_of(scope: Scope) -> RequestLog:
    """Return the log that `start_log` attached."""
    log: RequestLog = scope["state"]["log"]
    return log
