"""Settings of one worker process. Imports no torch, so that `msf` can read and describe them quickly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import NoDecode

from msf_engine.options import DEFAULT_PLAN_CACHE_BYTES, BackendName, Precision
from msf_scheduler.tracing import ENDPOINT_PATTERN, default_endpoint
from msf_scheduler.tunables import (
    DRAIN_TIMEOUT_S,
    LEASE_S,
    MAX_DRAIN_TIMEOUT_S,
    MAX_LEASE_S,
    MAX_RESULT_TTL_S,
    RESULT_TTL_S,
)


def _default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msf-serve"


class WorkerSettings(BaseModel):
    """Settings of a worker, except which Redis it works for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model_repo: Path = Field(Path("model_repo"), description="folder of models")
    model_control_mode: Literal["explicit", "poll"] = Field(
        "explicit", description="explicit: versions added to model_repo are loaded on request; poll: as they appear"
    )
    cache_dir: Path = Field(default_factory=_default_cache_dir, description="folder of compiled plans")
    plan_cache_bytes: int = Field(
        DEFAULT_PLAN_CACHE_BYTES,
        ge=0,
        le=2**53,
        description="size of all compiled plans above which the oldest are deleted",
    )
    backend: BackendName | None = Field(
        None,
        description="runtime of the networks; noop computes nothing, to measure everything else; "
        "default: tensorrt, else inductor, on a GPU and openvino on a CPU",
    )
    precision: Precision | None = Field(
        None, description="precision of the networks; default: the fastest that the device supports natively"
    )
    buckets: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], NoDecode] = Field(
        (),
        max_length=64,
        description="rows of step batches, separated by commas; a guided sample takes two; default: the backend's",
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="CPU threads of one worker"
    )
    slots: int = Field(512, ge=1, le=65536, description="samples per model that one worker keeps on its device")
    lease_s: float = Field(
        LEASE_S, ge=1, le=MAX_LEASE_S, description="seconds after which a dead worker's jobs restart on another"
    )
    result_ttl_s: float = Field(
        RESULT_TTL_S, ge=1, le=MAX_RESULT_TTL_S, description="seconds for which a job's images are kept"
    )
    drain_timeout_s: float = Field(
        DRAIN_TIMEOUT_S,
        ge=0,
        le=MAX_DRAIN_TIMEOUT_S,
        description="seconds that a stopping process has to finish its work",
    )
    step_timeout_s: float = Field(
        60.0, gt=0, le=86400, description="seconds after which a step counts as hung and ends its worker"
    )
    batching: Literal["step", "request"] = Field(
        "step", description="step: rebatch before every step; request: batch whole requests, for comparison"
    )
    batch_size: int = Field(8, ge=1, le=1024, description="samples per batch of request-level batching")
    batch_delay_s: float = Field(
        0.02, ge=0, le=60, description="seconds that a batch of request-level batching waits to fill"
    )
    trace_dir: Path | None = Field(None, description="folder for worker timelines, for ui.perfetto.dev; default: none")
    otlp_endpoint: str | None = Field(
        default_factory=default_endpoint,
        pattern=ENDPOINT_PATTERN,
        description="OTLP/HTTP endpoint for OpenTelemetry spans; default: OTEL_EXPORTER_OTLP_ENDPOINT, else none",
    )
    fatal_seed: int | None = Field(None, ge=0, le=2**53, description="test hook: a job with this seed kills its worker")
    hanging_seed: int | None = Field(None, ge=0, le=2**53, description="test hook: a job with it hangs its worker")
    worker_metrics_port: int = Field(
        0, ge=0, le=65535, description="Prometheus port of the first worker, the next for the second; 0: none"
    )

    @field_validator("buckets", mode="before")
    @classmethod
    def _split_buckets(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) and value else value or ()
