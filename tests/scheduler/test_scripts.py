"""Lua commands: each states its interface, and is sent with the modules that it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import msf_scheduler
from msf_scheduler.scripts import assemble, by_name

COMMANDS = sorted(Path(msf_scheduler.__path__[0]).glob("lua/*.lua"))


@pytest.mark.parametrize("file", COMMANDS, ids=[file.stem for file in COMMANDS])
def test_a_command_states_its_keys_and_its_result(file: Path) -> None:
    source = file.read_text()
    header = re.match(r"(?:--.*\n)+", source)
    assert header is not None
    assert "-- KEYS: " in header[0]
    assert "-- → " in header[0]
    assert ("-- ARGV: " in header[0]) == bool(re.search(r"\bargs\b", source))


@pytest.mark.parametrize("file", COMMANDS, ids=[file.stem for file in COMMANDS])
def test_a_command_comes_after_each_module_it_needs(file: Path) -> None:
    source = assemble(file.stem)
    assert "require" not in source
    definitions = {match[1]: match.start() for match in re.finditer(r"^modules\.(\w+) =", source, re.MULTILINE)}
    for use in re.finditer(r"= modules\.(\w+)", source):
        assert definitions[use[1]] < use.start()


def test_a_named_reply_becomes_a_dictionary() -> None:
    assert by_name([b"num_expired", 2, b"jobs", [[b"id", b"a"]]]) == {"num_expired": 2, "jobs": [[b"id", b"a"]]}
