"""`~` in the paths of every command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from msf_cli.main import main
from msf_cli.path_type import UserPath


def parameters(command: click.Command, name: str = "msf") -> Iterator[tuple[str, click.Parameter]]:
    yield from ((f"{name} {parameter.name}", parameter) for parameter in command.params)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            subcommand = command.get_command(context, each)
            assert subcommand is not None
            yield from parameters(subcommand, f"{name} {each}")


def test_every_path_of_a_command_may_begin_with_the_home_folder() -> None:
    paths = {name: each.type for name, each in parameters(main) if isinstance(each.type, click.Path)}
    assert len(paths) > 10
    assert [name for name, kind in paths.items() if not isinstance(kind, UserPath)] == []


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "keys.toml").write_text(f'[[keys]]\nname = "ada"\nsha256 = "{"0" * 64}"\n')
    result = CliRunner().invoke(main, ("keys", "check", "~/keys.toml"))
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(main, ("models", "pull", "~/nothing", "--model-repo", "~/models"))
    assert str(tmp_path / "nothing") in result.output
