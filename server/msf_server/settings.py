"""Settings of a server process."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from msf_scheduler.tunables import MAX_QUEUED_SAMPLES, RESULT_TTL_S

MIN_SECRET = 24  # characters


class ServerSettings(BaseModel):
    """Built by the entry point, which alone reads the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    max_body_bytes: int = Field(default=64 * 1024, ge=1024)
    body_timeout_s: float = Field(default=10.0, gt=0)
    max_images_per_request: int = Field(default=64, ge=1)
    max_queued_samples: int = Field(default=MAX_QUEUED_SAMPLES, ge=1)
    request_timeout_s: float = Field(default=300.0, gt=0)  # of requests that set none
    tenant_weights: dict[str, float] = Field(default_factory=dict)  # fair shares other than 1
    api_keys_file: Path | None = None  # None: the service is open
    cors_origins: tuple[str, ...] = ()  # other origins whose pages may call
    operations_port: int | None = None  # the only port for /metrics and the scope admin; None: any port
    result_ttl_s: float = Field(default=RESULT_TTL_S, ge=1)
    otlp_endpoint: str | None = None  # OTLP/HTTP receiver of OpenTelemetry spans
    webhook_secret: str | None = Field(default=None, min_length=MIN_SECRET)  # None: no webhooks
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()  # private networks that webhooks may reach
    load_timeout_s: float = Field(default=600.0, gt=0)  # how long a load request waits for the workers
    worker_absence_s: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _largest_request_fits(self) -> Self:
        if self.max_images_per_request > self.max_queued_samples:
            raise ValueError(
                f"max_images_per_request {self.max_images_per_request} must not exceed max_queued_samples "
                f"{self.max_queued_samples}: such a request could never be admitted"
            )
        return self
