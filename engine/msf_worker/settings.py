"""A worker's settings: typed, frozen, passed in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from msf_engine.backends import BackendName, Precision
from msf_engine.plan_cache import DEFAULT_LIMIT_BYTES
from msf_engine.plan_loader import DEFAULT_BUCKETS


class WorkerSettings(BaseModel):
    """`redis_url` in any form that redis-py reads; `num_threads` are the backend's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str
    model_repo: Path
    cache_dir: Path
    plan_cache_bytes: Annotated[int, Field(ge=0)] = DEFAULT_LIMIT_BYTES
    backend: BackendName | None = None  # the machine's default
    precision: Precision | None = None  # the fastest that is native
    buckets: tuple[Annotated[int, Field(ge=1)], ...] = DEFAULT_BUCKETS
    num_threads: Annotated[int, Field(ge=1)]
    num_slots: Annotated[int, Field(ge=1, le=1024)] = 32
    lease_s: Annotated[float, Field(ge=1)] = 15.0
    result_ttl_s: Annotated[float, Field(ge=1)] = 600.0
    drain_timeout_s: Annotated[float, Field(ge=0)] = 25.0
    step_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    batching: Literal["step", "request"] = "step"
    batch_size: Annotated[int, Field(ge=1)] = 8  # of request-level batching, as is the delay
    batch_delay_s: Annotated[float, Field(ge=0)] = 0.02
    trace_dir: Path | None = None
    otlp_endpoint: str | None = None  # where OpenTelemetry's spans go
    fatal_seed: int | None = None  # faults on purpose, for tests
    hanging_seed: int | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0  # 0: no metrics endpoint
