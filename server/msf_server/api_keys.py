"""API keys: who may call, for what, and how much. The file holds digests only, and is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import tomllib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from msf_scheduler.rate_limits import Limits

logger = logging.getLogger(__name__)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
KEY_PREFIX = "msf_"  # lets scanners for leaked secrets know ours


class Scope(StrEnum):
    GENERATE = "generate"
    ADMIN = "admin"


class ApiKey(BaseModel):
    """One `[[keys]]` table of the file; `name` is the tenant of all that the key's holder asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    # Several while a key is being replaced by its successor.
    sha256: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.GENERATE})
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    samples_per_day: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.samples_per_day)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[tuple[ApiKey, ...], Field(min_length=1)]


def new_key() -> str:
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """Plain SHA-256: nobody guesses 32 random bytes, so there is nothing for a slow or salted hash to slow down."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Raises ValueError with one line that says where the file is wrong; it never quotes what may be a key."""
    try:
        keys = _File.model_validate(tomllib.loads(path.read_text())).keys
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {_explained(error)}") from None
    for what, values in {
        "name": [key.name for key in keys],
        "sha256": [value for key in keys for value in key.sha256],
    }.items():
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{path}: the {what} {value!r} occurs {times} times; allowed: once")
    return keys


class KeyRing:
    """The keys of one file as it is now; a file that became unreadable leaves the last good keys in force."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when the file cannot be used."""
        self._path = path
        self._seen = _version(path)
        self._keys = read_keys(path)

    def find(self, key: str) -> ApiKey | None:
        """Takes as long for every key that is wrong, and never stops at the one that is right."""
        wanted = digest(key)
        matching = [known for known in self.keys() for stored in known.sha256 if hmac.compare_digest(stored, wanted)]
        return matching[0] if matching else None

    def keys(self) -> tuple[ApiKey, ...]:
        version = _version(self._path)
        if version != self._seen:
            self._seen = version
            try:
                self._keys = read_keys(self._path)
            except ValueError as error:
                logger.error("the API keys stay as they were: %s", error)
            else:
                logger.info("read %d API keys from %s", len(self._keys), self._path)
        return self._keys


def _version(path: Path) -> tuple[int, ...] | None:
    """Differs once the file was written or replaced, also through the symbolic links of a mounted secret."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    # A key that was put where its digest belongs must not end up in a log.
    may_show = (
        first["loc"][-1] in ("name", "requests_per_minute", "samples_per_day", "weight") or "scopes" in first["loc"]
    )
    value = f" = {first['input']!r}" if may_show and first["type"] != "missing" else ""
    return f"{place}{value}: {first['msg']}"
