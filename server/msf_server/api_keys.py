"""API keys with scopes and limits. Their file holds digests only, and is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import stat
import tomllib
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from msf_scheduler.rate_limits import RateLimits

logger = logging.getLogger(__name__)

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
KEY_PREFIX = "msf_"  # recognised by scanners for leaked secrets


class Scope(StrEnum):
    """Permission of an API key."""

    GENERATE = "generate"
    ADMIN = "admin"


_SHOWN_FIELDS = ("name", "requests_per_minute", "samples_per_day", "concurrent_sample_steps", "weight")


class ApiKey(BaseModel):
    """One `[[keys]]` table of the file; `name` is the tenant of the holder's jobs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    # Several while a key is rotated.
    sha256: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)] = frozenset({Scope.GENERATE})
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    samples_per_day: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    concurrent_sample_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    @field_validator("sha256", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def limits(self) -> RateLimits:
        return RateLimits(self.requests_per_minute, self.samples_per_day, self.concurrent_sample_steps)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: Annotated[tuple[ApiKey, ...], Field(min_length=1)]


def new_key() -> str:
    """Return a random key of 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest(key: str) -> str:
    """Hash with plain SHA-256: nobody guesses 32 random bytes, so a slow or salted hash adds nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Read and check a file. Raises ValueError with one line that names the error but never quotes a possible key."""
    try:
        content, mode = path.read_text(), path.stat().st_mode
        if mode & stat.S_IWOTH:
            raise ValueError(f"{path} has mode {stat.S_IMODE(mode):o}. Allowed: one in which other users cannot write")
        keys = _File.model_validate(tomllib.loads(content)).keys
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ValueError(f"{path}: {_explained(error)}") from None
    for field, values in {
        "name": [key.name for key in keys],
        "sha256": [value for key in keys for value in key.sha256],
    }.items():
        value, times = Counter(values).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{path}: the {field} {value!r} occurs {times} times; allowed: once")
    return keys


class KeyRing:
    """Keys of one file, as of its last valid version."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises ValueError if it is invalid."""
        self._path = path
        self._version = _version(path)
        self._keys = read_keys(path)

    def find(self, key: str) -> ApiKey | None:
        """Look a key up in constant time: every stored digest is compared."""
        sha256 = digest(key)
        matches = [entry for entry in self.keys() for stored in entry.sha256 if hmac.compare_digest(stored, sha256)]
        return matches[0] if matches else None

    def keys(self) -> tuple[ApiKey, ...]:
        """Return all keys; reads the file again after a change, and keeps the previous keys if it is invalid."""
        version = _version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._keys = read_keys(self._path)
            except ValueError as error:
                logger.error("the API keys stay unchanged: %s", error)
            else:
                logger.info("read %d API keys from %s", len(self._keys), self._path)
        return self._keys


def _version(path: Path) -> tuple[int, ...] | None:
    """Return a value that changes with the file, also through the symbolic links of a mounted secret."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    # A key in place of its digest must not appear in a log.
    may_show = first["loc"][-1] in _SHOWN_FIELDS or "scopes" in first["loc"]
    value = f" = {first['input']!r}" if may_show and first["type"] != "missing" else ""
    return f"{place}{value}: {first['msg']}"
