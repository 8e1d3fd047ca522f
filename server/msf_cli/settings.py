"""Settings of every command, read from the environment's `MSF_*` variables here and nowhere else."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from msf_cli.setup_checks import IncompleteSetup
from msf_server.settings import ServerOptions

logger = logging.getLogger(__name__)

PREFIX = "MSF_"
ENVIRONMENT = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)
REFUSED_RATIO = 0.87  # similarity to a setting's name above which nothing else can be meant
PRIVATE_UMASK = 0o077  # what the service writes is its user's alone
MAX_SHOWN = 120  # characters of a value in a message
SECRETS = ("redis_url", "webhook_secret")  # values that no message shows
TEST_HOOKS = ("fatal_seed", "hanging_seed")
OTHER_VARIABLES = ("MSF_API_KEY",)  # read by commands that call a server


class _NoWorkerSettings(BaseModel):
    """Stand-in for the worker's settings in an installation of the server alone, which starts no workers."""


if TYPE_CHECKING or find_spec("msf_worker"):
    from msf_worker.settings import WorkerSettings
else:
    WorkerSettings = _NoWorkerSettings


class ProcessSettings(BaseSettings):
    """Settings of every process of the service."""

    model_config = ENVIRONMENT

    redis_password_file: Path | None = Field(None, description="file with the password that MSF_REDIS_URL lacks")
    redis_url: str | None = Field(None, description="URL of Redis or Valkey; default: an embedded Valkey")
    log_format: Literal["text", "json"] = Field("text", description="format of log lines, on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="lowest level that is logged")

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        from msf_scheduler.redis_url import check_redis_url, with_password

        if url is None:
            return None
        check_redis_url(url)
        password_file: Path | None = info.data.get("redis_password_file")
        if password_file is None:
            return url
        try:
            return with_password(url, password_file.read_text().rstrip("\r\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"its password file cannot be read: {error}") from error

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        if value == "":
            raise ValueError("empty. Allowed: a value, or neither flag nor variable")
        return value

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: object) -> object:
        try:
            return value.expanduser() if isinstance(value, Path) else value
        except RuntimeError as error:
            raise ValueError(str(error)) from error


class WorkerProcessSettings(WorkerSettings, ProcessSettings):
    """Settings of `msf worker`."""

    model_config = ENVIRONMENT


class Settings(ServerOptions, WorkerProcessSettings):
    """Settings of `msf serve`, those of its workers included."""

    model_config = ENVIRONMENT
    data_dir: Path = Field(Path(".msf"), description="folder of the embedded Valkey's data")
    workers: int = Field(1, ge=0, le=64, description="worker processes that `msf serve` starts")

    @model_validator(mode="after")
    def _every_worker_has_a_port(self) -> Self:
        first_port = getattr(self, "worker_metrics_port", 0)
        if first_port and first_port + self.workers - 1 > 65535:
            raise ValueError(f"MSF_WORKER_METRICS_PORT={first_port}: too high for MSF_WORKERS={self.workers}")
        return self


AnySettings = TypeVar("AnySettings", bound=ProcessSettings)


def read_settings(**overrides: object) -> Settings:
    """Read all settings; `overrides` take precedence. Raises as `read` does."""
    return read(Settings, overrides)


def read(kind: type[AnySettings], flags: Mapping[str, object]) -> AnySettings:
    """Read the settings of one command from its flags, by name, and from the environment.

    Raises IncompleteSetup with one line that names the flag or variable, its value (unless it may hold a secret), and
    what is allowed.
    """
    check_names(os.environ)
    try:
        return kind(**flags)  # type: ignore[arg-type]  # validated by pydantic
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise IncompleteSetup(reason) from None
        name, *place = (str(part) for part in first["loc"])
        label = flag_of(name) if name in flags else variable_of(name)
        text = repr(flags.get(name, os.environ.get(variable_of(name))))
        value = "" if name in SECRETS else f"={text}" if len(text) <= MAX_SHOWN else f"={text[:MAX_SHOWN]}..."
        where = f" ({'.'.join(place)})" if place else ""
        raise IncompleteSetup(f"{label}{value}{where}: {reason}") from None


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name}".upper()


def flag_of(name: str) -> str:
    """Return the command line's option of a setting."""
    return f"--{name.replace('_', '-')}"


def check_names(environment: Mapping[str, str]) -> None:
    """Raise IncompleteSetup for a variable that is almost the name of a setting; warn of others that are none."""
    names = [*map(variable_of, Settings.model_fields), *OTHER_VARIABLES]
    for variable in sorted(environment):
        if not variable.upper().startswith(PREFIX) or variable.upper() in names:
            continue
        closest = difflib.get_close_matches(variable.upper(), names, n=1)
        if closest and difflib.SequenceMatcher(a=closest[0], b=variable.upper()).ratio() >= REFUSED_RATIO:
            raise IncompleteSetup(f"Unknown setting {variable}. Closest: {closest[0]}.")
        hint = f" Closest: {closest[0]}." if closest else ""
        logger.warning("Ignoring %s, which is not a setting here.%s", variable, hint)


def worker_environment(flags: Mapping[str, object], redis_url: str) -> dict[str, str]:
    """Return the environment of a worker of `msf serve`: no setting of the server, and no secret."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    texts = {name: os.environ.get(variable_of(name)) for name in WorkerProcessSettings.model_fields} | dict(flags)
    settings = {
        variable_of(name): str(text)
        for name, text in texts.items()
        if text is not None and name in WorkerProcessSettings.model_fields
    }
    return {**inherited, **settings, variable_of("redis_url"): redis_url}
