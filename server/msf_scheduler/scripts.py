"""Lua scripts of the scheduler: each transition of a job is one script, so it happens entirely or not at all.

`lua/` has one file per command, `lua/lib/` the modules that commands load by `require`. Redis has no `require`, so a
command is sent with the modules that it needs in front. Some modules are generated from Python constants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from msf_scheduler import keys, tunables
from msf_scheduler.connection import RedisClient, call
from msf_scheduler.jobs import JobState, Priority

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


@cache
def assemble(command: str) -> str:
    """Return the source of a command behind that of every module it needs, each after the modules it needs itself."""
    modules: dict[str, str] = {}

    def add_required(source: str) -> str:
        for name in _REQUIRE.findall(source):
            if name not in modules:
                module = _GENERATED.get(name) or (_FOLDER / "lib" / f"{name}.lua").read_text()
                modules[name] = add_required(module)
        return _REQUIRE.sub(r"modules.\1", source)

    body = add_required((_FOLDER / f"{command}.lua").read_text())
    preamble = "".join(f"modules.{name} = (function()\n{source}\nend)()\n" for name, source in modules.items())
    return f"local modules = {{}}\n{preamble}{body}"


def by_name(reply: Sequence[Any]) -> dict[str, Any]:
    """Return a script's flat list of names and values as a dictionary."""
    return {name.decode(): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


class Script:
    """One command of this package; sent once, then called by its hash.

    Only admission is refused when Redis is out of memory: accepted jobs can always be finished.
    """

    def __init__(self, redis: RedisClient, command: str) -> None:
        flags = "" if command == "admit" else " flags=allow-oom"
        self._redis = redis
        self._source = f"#!lua{flags}\n{assemble(command)}"
        self._sha = hashlib.sha1(self._source.encode()).hexdigest()

    async def __call__(self, key: Mapping[str, str | None], /, *blobs: bytes, **arguments: Any) -> Any:
        """Return the script's reply as Redis sent it (bytes, integers, lists); raise `QueueUnavailable`.

        `key` has the script's keys by name, `arguments` are JSON values; None is left out, which Lua reads as nil.
        """
        names = [name for name, value in key.items() if value is not None]
        values = {"keys": names} | {name: value for name, value in arguments.items() if value is not None}
        command: list[str | bytes | int] = ["EVALSHA", self._sha, len(names), *(str(key[name]) for name in names)]
        command += [json.dumps(values), *blobs]
        try:
            return await call(self._redis, *command)
        except NoScriptError:  # new to this server, or it was restarted; nothing has happened yet
            await call(self._redis, "SCRIPT LOAD", self._source)
            return await call(self._redis, *command)
