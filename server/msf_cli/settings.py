"""The environment's `MSF_*` variables: the only place that reads them."""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

import click
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from msf_scheduler.tunables import LEASE_S, MAX_QUEUED_SAMPLES, RESULT_TTL_S

Backend = Literal["eager", "inductor", "openvino", "tensorrt", "noop"]
Precision = Literal["fp32", "bf16", "fp16"]


def _cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msf-serve"


class Settings(BaseSettings):
    """Every setting of every command; each is the variable of its name, in capitals, behind `MSF_`."""

    model_config = SettingsConfigDict(env_prefix="MSF_", env_ignore_empty=True, frozen=True)

    host: str = Field("127.0.0.1", description="address that the HTTP server binds")
    port: int = Field(8000, ge=0, le=65535, description="port that the HTTP server binds")
    redis_url: str | None = Field(None, description="Redis or Valkey to use; without it one is embedded")
    model_repo: Path = Field(Path("model_repo"), description="folder of models")
    cache_dir: Path = Field(default_factory=_cache_dir, description="folder of compiled plans")
    data_dir: Path = Field(Path(".msf"), description="folder of the embedded Valkey's data")
    workers: int = Field(1, ge=0, le=64, description="worker processes that `msf serve` starts")
    plan_cache_bytes: int = Field(20 * 2**30, ge=0, description="size beyond which the oldest plans are removed")
    backend: Backend | None = Field(
        None,
        description="what runs the networks; default: tensorrt, else inductor, on a GPU and openvino on a CPU; "
        "noop computes nothing, to measure the rest",
    )
    precision: Precision | None = Field(None, description="default: the fastest that is native")
    buckets: Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], NoDecode] = Field(
        (1, 2, 4, 8, 16), min_length=1, description="batch sizes to compile plans for"
    )
    threads: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="threads of one worker")
    slots: int = Field(32, ge=1, le=1024, description="samples that one worker advances side by side")
    max_queued_samples: int = Field(MAX_QUEUED_SAMPLES, ge=64, description="most samples of one model that wait or run")
    lease_s: float = Field(LEASE_S, ge=1, description="after how long a dead worker's jobs start again elsewhere")
    result_ttl_s: float = Field(RESULT_TTL_S, ge=1, description="how long a job's images are kept")
    drain_timeout_s: float = Field(25.0, ge=0, description="how long a stopping worker may finish what it has begun")
    step_timeout_s: float = Field(60.0, gt=0, description="after how long a step counts as hung and its worker ends")
    tenant_weights: dict[str, float] = Field(
        default_factory=dict, description='shares of tenants that are not 1, as JSON: {"team-a": 4}'
    )
    api_keys_file: Path | None = Field(
        None, description="TOML file of the API keys that are let in (`msf keys new`); without it everybody is"
    )
    cors_origins: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[^/*\s,]+$")], ...], NoDecode] = Field(
        (), description="origins whose pages may call from a browser, such as https://studio.example"
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="a second port, the only one then with /metrics and the scope admin; 0: none"
    )
    webhook_secret: str | None = Field(
        None,
        min_length=24,
        description="what webhooks are signed with (`msf keys webhook-secret`); default: no webhooks",
    )
    webhook_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="private networks that webhooks may go to nevertheless, such as 10.1.0.0/16"
    )
    batching: Literal["step", "request"] = Field("step", description="request: as others do it, to compare with")
    batch_size: int = Field(8, ge=1, description="samples that a batch takes, with request-level batching")
    batch_delay_s: float = Field(0.02, ge=0, description="how long a batch waits for company, with the same")
    trace_dir: Path | None = Field(None, description="folder for time lines of the workers, for ui.perfetto.dev")
    otlp_endpoint: str | None = Field(None, description="OTLP/HTTP receiver of OpenTelemetry's spans; default: none")
    fatal_seed: int | None = Field(None, description="for tests: a job of this seed kills its worker")
    hanging_seed: int | None = Field(None, description="for tests: a job of this seed hangs its worker")
    worker_metrics_port: int = Field(
        0, ge=0, le=65535, description="Prometheus port of a worker, of the second one the next; 0: none"
    )
    log_format: Literal["text", "json"] = Field("text", description="of log lines, on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")

    @field_validator("buckets", "cors_origins", "webhook_networks", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _well_formed(cls, url: str | None) -> str | None:
        from msf_scheduler.connection import connect

        if url is not None:
            connect(url)  # raises ValueError; it opens no connection yet
        return url


def read_settings(**given: object) -> Settings:
    """The environment's settings; those `given` on a command line go before.

    Raises UsageError with one line that names the variable, its value (unless it may hold a password) and why.
    """
    try:
        return Settings(**given)  # type: ignore[arg-type]  # what is wrong is found by the validation
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        value = "" if name in ("redis_url", "webhook_secret") else f"={first['input']!r}"
        reason = first["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"MSF_{name}".upper() + f"{value}: {reason}") from error


def describe_settings() -> str:
    """The settings as `--help` shows them."""
    lines = [f"MSF_{name.upper()}  {field.description}" for name, field in Settings.model_fields.items()]
    return "\b\nEnvironment:\n" + "\n".join(f"  {line}" for line in lines)
