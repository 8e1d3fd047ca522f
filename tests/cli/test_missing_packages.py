"""Commands whose packages are not installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from click.testing import CliRunner

from msf_cli.main import main

GENERATE = ("generate", "--prompt", "star", "--out", "star.png")
MISSING: Any = None  # as a value of sys.modules, it makes an import fail


@pytest.mark.parametrize(
    "arguments",
    [GENERATE, ("compile",), ("train", "--data", "."), ("serve",), ("plan", "--images-per-s", "1", "--p99-s", "1")],
    ids=lambda arguments: str(arguments[0]),
)
def test_a_command_without_torch_says_what_to_install(
    arguments: tuple[str, ...], settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("msf_engine", "msf_worker", "msf_training"))]:
        monkeypatch.delitem(sys.modules, module)  # imported again, without torch
    monkeypatch.setitem(sys.modules, "torch", MISSING)
    result = CliRunner().invoke(main, arguments, env=settings)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "needs torch. Install it: pip install 'msf-serve[worker]'" in result.stderr


def test_the_load_generator_has_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("msf_cli.load", "msf_cli.commands.load"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aiohttp", MISSING)
    result = CliRunner().invoke(main, ["load", "--rate", "1"])
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: msf load needs aiohttp. Install it: pip install 'msf-serve[load]'\n",
    )
