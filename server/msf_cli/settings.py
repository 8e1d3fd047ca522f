"""Settings of every command, read from the environment's `MSF_*` variables here and nowhere else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click
from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from msf_server.settings import ServerOptions


class _NoWorkerSettings(BaseModel):
    """Stand-in for the worker's settings in an installation of the server alone, which starts no workers."""


if TYPE_CHECKING or find_spec("msf_worker"):
    from msf_worker.settings import WorkerSettings
else:
    WorkerSettings = _NoWorkerSettings


class Settings(ServerOptions, WorkerSettings, BaseSettings):
    """Settings of server and workers, and those of `msf serve` itself."""

    model_config = SettingsConfigDict(env_prefix="MSF_", env_ignore_empty=True, frozen=True)

    redis_url: str | None = Field(None, description="URL of Redis or Valkey; default: an embedded Valkey")
    data_dir: Path = Field(Path(".msf"), description="folder of the embedded Valkey's data")
    workers: int = Field(1, ge=0, le=64, description="worker processes that `msf serve` starts")
    log_format: Literal["text", "json"] = Field("text", description="format of log lines, on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        from msf_scheduler.connection import connect

        if url is not None:
            connect(url)  # raises ValueError; it opens no connection yet
        return url


def read_settings(**overrides: object) -> Settings:
    """Read the environment; `overrides` take precedence.

    Raises UsageError with one line that names the variable, its value (unless it may hold a password) and the reason.
    """
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        value = "" if name in ("redis_url", "webhook_secret") else f"={first['input']!r}"
        reason = first["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"MSF_{name}".upper() + f"{value}: {reason}") from error


def describe_settings() -> str:
    """Return the help text of all settings."""
    width = max(len(name) for name in Settings.model_fields) + len("MSF_")
    lines = [f"  {f'MSF_{name}'.upper():{width}}  {field.description}" for name, field in Settings.model_fields.items()]
    return "\b\nEnvironment:\n" + "\n".join(lines)
