"""Aliases: names that stand for a version of a model, or for several versions by weight.

The alias "emoji" decides which version a request to the model without a version gets; "emoji:stable" is one more name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping

from pydantic import TypeAdapter, ValidationError

from msf_scheduler import keys
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.errors import listed
from msf_scheduler.model_control import ModelControl
from msf_scheduler.registry import Registry

logger = logging.getLogger(__name__)

Weights = Mapping[str, float]  # share of the requests, by version; in all 1

MAX_ALIASES = 1000  # of all models: every server reads them all after a change
WEIGHT_TOLERANCE = 1e-6  # of the sum
_MAX_QUOTED = 80  # characters of a name in a message
_TAG = re.compile(r"[a-z][a-z0-9._-]{0,63}")  # begins with a letter: a version is a number
_STORED = TypeAdapter(dict[str, float])


class InvalidAlias(ValueError):
    """An alias that was refused, and changed nothing; `param` names what is wrong with it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownAlias(InvalidAlias):
    """The alias, its model or one of its versions does not exist."""


class Aliases:
    """Aliases of all models, stored once for all servers. Every method may raise `QueueUnavailable`."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._registry = Registry(redis)
        self._model_control = ModelControl(redis)

    async def read(self) -> dict[str, Weights]:
        """Return the weights of every alias; a damaged record is logged and skipped."""
        stored = await call(self._redis, "HGETALL", keys.ALIASES)
        aliases: dict[str, Weights] = {}
        for name, weights in sorted(stored.items()):
            try:
                aliases[name.decode()] = _STORED.validate_json(weights)
            except (ValidationError, UnicodeDecodeError):
                logger.error("ignoring the alias %r, whose record in Redis is damaged", name)
        return aliases

    async def set(self, alias: str, weights: Weights) -> None:
        """Create or replace an alias. Raises InvalidAlias, UnknownAlias."""
        model = _model_of(alias)
        _check_versions(alias, weights, await self._loaded_versions(model))
        _check_weights(alias, weights)
        await self._check_room(alias)
        await call(self._redis, "HSET", keys.ALIASES, alias, json.dumps(dict(weights)))
        await self._model_control.next_revision()  # servers that follow revisions read the aliases again

    async def delete(self, alias: str) -> None:
        """Remove an alias. Raises UnknownAlias."""
        if not await call(self._redis, "HDEL", keys.ALIASES, alias):
            allowed = listed([*await self.read()]) or "none, as no alias is set"
            raise UnknownAlias(f"Unknown alias {_quoted(alias)}. Allowed: {allowed}.", "alias")
        await self._model_control.next_revision()

    async def _check_room(self, alias: str) -> None:
        """Raise InvalidAlias for one alias too many; a few that are set at the same moment may pass."""
        num_aliases = await call(self._redis, "HLEN", keys.ALIASES)
        if num_aliases >= MAX_ALIASES and not await call(self._redis, "HEXISTS", keys.ALIASES, alias):
            raise InvalidAlias(f"Too many aliases: {num_aliases}. Allowed: {MAX_ALIASES}; delete some first.", "alias")

    async def _loaded_versions(self, model: str) -> list[str]:
        """Return the versions of a model that are registered and not unloaded. Raises UnknownAlias."""
        _, desired = await self._model_control.read()
        models = await self._registry.models()
        versions = [each.version for each in models if each.name == model]
        if not versions:
            allowed = ", ".join(sorted({each.name for each in models})) or "none, as no worker has registered one"
            raise UnknownAlias(f"Unknown model {_quoted(model)}. Allowed: {allowed}.", "alias")
        if model in desired:
            versions = [version for version in versions if version in desired[model].versions]
        return sorted(versions, key=_order)


def choose_version(weights: Weights, routing_key: str) -> str:
    """Return the version for a request; equal keys get the same one, and other weights move as few as possible."""
    point = int.from_bytes(hashlib.sha256(routing_key.encode()).digest()[:8], "big") / 2**64 * sum(weights.values())
    versions = sorted((version for version, weight in weights.items() if weight > 0), key=_order)
    for version in versions:
        point -= weights[version]
        if point < 0:
            return version
    return versions[-1]


def _model_of(alias: str) -> str:
    """Return the model that an alias belongs to. Raises InvalidAlias."""
    model, separator, tag = alias.partition(":")
    if separator and not _TAG.fullmatch(tag):
        raise InvalidAlias(
            f"Invalid alias {_quoted(alias)}. Allowed: a model, or model:tag with a tag of 1 to 64 of a-z 0-9 . _ - "
            "that begins with a letter.",
            "alias",
        )
    return model


def _check_versions(alias: str, weights: Weights, loaded: list[str]) -> None:
    for version in weights:
        if version not in loaded:
            allowed = ", ".join(loaded) or "none, as the model is unloaded"
            raise UnknownAlias(f"Unknown version {_quoted(version)} of alias {alias}. Allowed: {allowed}.", "versions")


def _check_weights(alias: str, weights: Weights) -> None:
    for version, weight in weights.items():
        if not 0 <= weight <= 1:  # NaN is neither
            raise InvalidAlias(
                f"Invalid weight of version {version} of alias {alias}: {weight}. Allowed: 0 to 1.", "versions"
            )
    total = sum(weights.values())
    if not math.isclose(total, 1, abs_tol=WEIGHT_TOLERANCE):
        raise InvalidAlias(f"The weights of alias {alias} sum to {total:g}. Allowed: a sum of 1.", "versions")


def _quoted(name: str) -> str:
    return json.dumps(name if len(name) <= _MAX_QUOTED else f"{name[: _MAX_QUOTED - 3]}...")


def _order(version: str) -> tuple[int, str]:
    return (len(version), version)  # they are numbers
