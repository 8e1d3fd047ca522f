"""The Lua scripts: each transition of a job is one of them, so that it happens whole or not at all."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from msf_scheduler.connection import call
from msf_scheduler.keys import LUA_NAMES

ScriptName = Literal[
    "admit",
    "claim",
    "renew",
    "finish",
    "release",
    "sweep",
    "bury",
    "cancel",
    "watch",
    "publish",
    "due_webhooks",
    "settle_webhook",
    "depth",
    "heartbeat",
    "now",
    "charge",
    "refund",
    "desire",
]

_FOLDER = files("msf_scheduler") / "lua"


class Script:
    """One script of this package; sent once, then called by its hash.

    Only admission is refused when Redis is out of memory: what was accepted can always be finished.
    """

    def __init__(self, redis: Redis, name: ScriptName) -> None:
        flags = "" if name == "admit" else " flags=allow-oom"
        parts = [f"#!lua{flags}", LUA_NAMES, *((_FOLDER / f"{part}.lua").read_text() for part in ("common", name))]
        self._redis = redis
        self._source = "\n".join(parts)
        self._sha = hashlib.sha1(self._source.encode()).hexdigest()

    async def __call__(self, queue_prefix: str, /, *blobs: bytes, **arguments: Any) -> Any:
        """The script's reply as Redis sent it (bytes, integers, lists); raises `QueueUnavailable`.

        `arguments` are JSON values; one that is None is left out, which Lua reads as nil.
        """
        named = json.dumps({name: value for name, value in arguments.items() if value is not None})
        command: tuple[str | bytes | int, ...] = ("EVALSHA", self._sha, 1, queue_prefix, named, *blobs)
        try:
            return await call(self._redis, *command)
        except NoScriptError:  # new to this server, or it was restarted; nothing has happened yet
            await call(self._redis, "SCRIPT LOAD", self._source)
            return await call(self._redis, *command)
