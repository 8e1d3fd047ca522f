"""Lua commands: each states its interface, and is loaded with the modules that it needs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from redis.asyncio import Redis

import msf_scheduler
from msf_scheduler.connection import call
from msf_scheduler.keys import CLOCK
from msf_scheduler.scripts import Invocation, Script, by_name, call_all, library

COMMANDS = sorted(Path(msf_scheduler.__path__[0]).glob("lua/*.lua"))


@pytest.mark.parametrize("file", COMMANDS, ids=[file.stem for file in COMMANDS])
def test_a_command_states_its_keys_and_its_result(file: Path) -> None:
    source = file.read_text()
    header = re.match(r"(?:--.*\n)+", source)
    assert header is not None
    assert "-- KEYS: " in header[0]
    assert "-- → " in header[0]
    assert ("-- ARGV: " in header[0]) == bool(re.search(r"\bargs\b", source))


def test_every_module_is_defined_before_its_use() -> None:
    _, source = library()
    assert "require '" not in source
    definitions = {match[1]: match.start() for match in re.finditer(r"^modules\.(\w+) =", source, re.MULTILINE)}
    for use in re.finditer(r"= modules\.(\w+)", source):
        assert definitions[use[1]] < use.start()


async def test_the_library_is_loaded_when_redis_does_not_have_it(redis: Redis) -> None:
    await call(redis, "FUNCTION FLUSH")
    depth = Invocation("depth", {"queue": "{msf}:queue:m/1:"}, {})
    first, second = await call_all(redis, [depth, depth])
    assert by_name(first) == by_name(second)
    await call(redis, "FUNCTION FLUSH")
    outcomes = await asyncio.gather(*(Script(redis, "now")({"clock": CLOCK}) for _ in range(10)))
    assert len(outcomes) == 10


def test_a_named_reply_becomes_a_dictionary() -> None:
    assert by_name([b"num_expired", 2, b"jobs", [[b"id", b"a"]]]) == {"num_expired": 2, "jobs": [[b"id", b"a"]]}
