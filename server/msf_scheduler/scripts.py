"""Lua scripts of the scheduler: each transition of a job is one script, so it happens entirely or not at all.

`lua/` has one file per command, `lua/lib/` the modules that commands load by `require`. Redis has no `require`, so all
of them are loaded as one library of Redis functions, which builds the modules once, not at each call. Some modules are
generated from Python constants.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from msf_scheduler import keys, tunables
from msf_scheduler.connection import RedisClient, call, guarded
from msf_scheduler.jobs import JobState, Priority
from msf_scheduler.pipelining import PipeliningRedis

MAX_SHARED_BYTES = 1 << 18  # of blobs that are sent on the connection of all tasks

_FOLDER = files("msf_scheduler") / "lua"
_REQUIRE = re.compile(r"\brequire '(\w+)'")


def _table(constants: Mapping[str, str | float]) -> str:
    return "".join(f"  {name} = {json.dumps(value)},\n" for name, value in constants.items())


_GENERATED = {
    "keys": f"""\
local keys = {{
{_table(keys.SCRIPT_CONSTANTS)}}}
function keys.queue(prefix)
  return {{
{"".join(f"    {part} = prefix .. '{part}',{chr(10)}" for part in keys.QUEUE_PARTS)}  }}
end
return keys""",
    "priority_classes": f"return {{{', '.join(str(priority.rank) for priority in Priority)}}}",
    "states": f"return {{\n{_table({state.name: state.value for state in JobState})}}}",
    "tunables": f"return {{\n{_table({name: value for name, value in vars(tunables).items() if name.isupper()})}}}",
}


_REGISTRATION = """\
redis.register_function{{function_name = LIBRARY .. '{command}', flags = {{{flags}}}, callback = function(KEYS, ARGV)
{body}
end}}"""


@cache
def library() -> tuple[str, str]:
    """Return the name and the source of the library: every module after those that it needs, then the commands."""
    modules: dict[str, str] = {}

    def add_required(source: str) -> str:
        for name in _REQUIRE.findall(source):
            if name not in modules:
                module = _GENERATED.get(name) or (_FOLDER / "lib" / f"{name}.lua").read_text()
                modules[name] = add_required(module)
        return _REQUIRE.sub(r"modules.\1", source)

    commands = {path.name.removesuffix(".lua"): path for path in _FOLDER.iterdir() if path.name.endswith(".lua")}
    bodies = {command: add_required(path.read_text()) for command, path in sorted(commands.items())}
    parts = [f"modules.{module} = (function()\n{source}\nend)()" for module, source in modules.items()]
    parts += [
        _REGISTRATION.format(command=command, flags=_flags(command), body=body) for command, body in bodies.items()
    ]
    source = "\n".join(parts)
    name = f"msf_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    return name, f"#!lua name={name}\nlocal LIBRARY, modules = '{name}_', {{}}\n{source}\n"


def _flags(command: str) -> str:
    """Refuse only admission when Redis is out of memory: accepted jobs can always be finished."""
    return "" if command == "admit" else "'allow-oom'"


def by_name(reply: Sequence[Any]) -> dict[str, Any]:
    """Return a script's flat list of names and values as a dictionary."""
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


async def load_library(redis: RedisClient) -> None:
    """Store the library in Redis, which keeps it with its data; each release has one of its own."""
    try:
        await call(redis, "FUNCTION LOAD", library()[1])
    except ResponseError as error:
        if "already exists" not in str(error):
            raise


@dataclass(frozen=True)
class Invocation:
    """One call of a command: `keys` are its keys by name, `arguments` are JSON values, `blobs` come after these.

    None is left out, which Lua reads as nil.
    """

    command: str
    keys: Mapping[str, str | None]
    arguments: Mapping[str, Any]
    blobs: Sequence[bytes] = ()

    def words(self) -> list[str | bytes | int]:
        """Return the words of the Redis command."""
        names = [name for name, key in self.keys.items() if key is not None]
        values = {"keys": names} | {name: value for name, value in self.arguments.items() if value is not None}
        keys = [str(self.keys[name]) for name in names]
        return ["FCALL", f"{library()[0]}_{self.command}", len(keys), *keys, json.dumps(values), *self.blobs]


class Script:
    """One command of this package."""

    def __init__(self, redis: RedisClient, command: str) -> None:
        self._redis = redis
        self._command = command

    async def __call__(self, key: Mapping[str, str | None], /, *blobs: bytes, **arguments: Any) -> Any:
        """Return the script's reply as Redis sent it (bytes, integers, lists); raise `QueueUnavailable`."""
        words = Invocation(self._command, key, arguments, blobs).words()
        try:
            return await call(self._redis, *words)
        except ResponseError as error:
            if not _is_unknown(error):
                raise
            await load_library(self._redis)
            return await call(self._redis, *words)


async def call_all(redis: RedisClient, invocations: Sequence[Invocation]) -> list[Any]:
    """Return the replies of several commands that are sent in one write; raise `QueueUnavailable`.

    Each happens entirely or not at all, in this order, whatever happens to the others.
    """
    replies = await _send_all(redis, invocations)
    if any(_is_unknown(reply) for reply in replies):  # of all of them: nothing has happened yet
        await load_library(redis)
        replies = await _send_all(redis, invocations)
    for reply in replies:
        if isinstance(reply, Exception):
            await guarded(redis, _raise(reply))
    return replies


async def _send_all(redis: RedisClient, invocations: Sequence[Invocation]) -> list[Any]:
    """Send commands with those of other tasks, or with large blobs, which would hold these up, on their own."""
    num_bytes = sum(len(blob) for invocation in invocations for blob in invocation.blobs)
    if isinstance(redis, PipeliningRedis) and num_bytes <= MAX_SHARED_BYTES:
        replies = (redis.enqueue(*invocation.words()) for invocation in invocations)
        return await asyncio.gather(*replies, return_exceptions=True)
    async with redis.pipeline(transaction=False) as pipeline:
        for invocation in invocations:
            pipeline.execute_command(*invocation.words())
        return list(await guarded(redis, pipeline.execute(raise_on_error=False)))


async def _raise(error: Exception) -> None:
    raise error


def _is_unknown(reply: object) -> bool:
    """Return whether Redis does not have the library; nothing has happened then."""
    return isinstance(reply, ResponseError) and "Function not found" in str(reply)
