"""Settings of a server process."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import from_json
from pydantic_settings import NoDecode

from msf_scheduler.tracing import ENDPOINT_PATTERN, default_endpoint
from msf_scheduler.tunables import (
    DRAIN_TIMEOUT_S,
    MAX_DRAIN_TIMEOUT_S,
    MAX_PENDING_WEBHOOKS,
    MAX_QUEUED_SAMPLES,
    MAX_RESULT_TTL_S,
    MAX_SAMPLE_STEPS,
    MAX_STORED_JOBS,
    RESULT_TTL_S,
)
from msf_server.ssrf import PORTS

MIN_SECRET = 24  # characters

Tenant = Annotated[str, Field(min_length=1, max_length=128)]
Weight = Annotated[float, Field(strict=True, ge=0.001, le=1000)]


class ServerOptions(BaseModel):
    """Settings that an operator may change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", min_length=1, description="address that the HTTP server binds")
    port: int = Field(8000, ge=0, le=65535, description="port that the HTTP server binds; 0: any free port")
    grpc_port: int = Field(
        0, ge=0, le=65535, description="port of the Open Inference Protocol over gRPC (extra grpc); 0: none"
    )
    max_queued_samples: int = Field(
        MAX_QUEUED_SAMPLES,
        ge=64,
        le=1_000_000,
        description="queued and running samples of one model above which requests get 429",
    )
    max_sample_steps: int = Field(
        MAX_SAMPLE_STEPS, ge=64, le=1_000_000, description="most denoising steps of one request: n times num_steps"
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
    tenant_weights: Annotated[dict[Tenant, Weight], Field(max_length=10_000), NoDecode] = Field(
        default_factory=dict, description='fair shares of tenants other than 1, as JSON: {"team-a": 4}'
    )
    api_keys_file: Path | None = Field(
        None, description="TOML file of API keys (`msf keys new`); default: no key is needed"
    )
    cors_origins: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[^/*\s,]+$")], ...], NoDecode] = Field(
        (), description="origins whose pages may call from a browser, such as https://studio.example"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="second port, then the only one with /metrics and the scope admin; 0: none"
    )
    webhook_secret: str | None = Field(
        None,
        min_length=MIN_SECRET,
        max_length=1024,
        description="secret that signs webhooks (`msf keys webhook-secret`); default: none",
    )
    webhook_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="private networks that webhooks may reach, such as 10.1.0.0/16"
    )
    webhook_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = Field(
        PORTS, description="ports of public addresses that webhooks may use"
    )
    max_stored_jobs: int = Field(
        MAX_STORED_JOBS,
        ge=1,
        le=10_000_000,
        description="jobs of one tenant, ended ones included, above which its requests get 429",
    )
    max_pending_webhooks: int = Field(
        MAX_PENDING_WEBHOOKS,
        ge=1,
        le=10_000_000,
        description="undelivered webhooks of one tenant above which further ones get 429",
    )
    otlp_endpoint: str | None = Field(
        default_factory=default_endpoint,
        pattern=ENDPOINT_PATTERN,
        description="OTLP/HTTP endpoint for OpenTelemetry spans; default: OTEL_EXPORTER_OTLP_ENDPOINT, else none",
    )

    @field_validator("cors_origins", "webhook_networks", "webhook_ports", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("tenant_weights", mode="before")
    @classmethod
    def _parse_json(cls, value: object) -> object:
        try:
            return from_json(value, allow_inf_nan=False) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f'Invalid JSON: {error}. Allowed: an object such as {{"team-a": 4}}') from None


class ServerSettings(ServerOptions):
    """All settings of a server: its options, its Redis, and limits with no environment variable."""

    redis_url: str
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    body_timeout_s: float = Field(default=10.0, gt=0)
    max_images_per_request: int = Field(default=64, ge=1)
    request_timeout_s: float = Field(default=300.0, gt=0)  # of requests that set none
    load_timeout_s: float = Field(default=600.0, gt=0)  # time that a load request waits for the workers
    worker_absence_s: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.max_images_per_request > self.max_queued_samples:
            raise ValueError(
                f"max_images_per_request {self.max_images_per_request} must not exceed max_queued_samples "
                f"{self.max_queued_samples}: such a request could never be admitted"
            )
        return self
