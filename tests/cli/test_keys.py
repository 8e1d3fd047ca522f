"""`msf keys`: the server accepts what it prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from msf_cli.main import main
from msf_server.api_keys import KeyRing, Scope


def run(*arguments: str, **settings: str) -> Result:
    return CliRunner().invoke(main, ["keys", *arguments], env=settings)


def test_a_new_key_is_accepted_with_its_table(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    first = run(
        *("new", "--name", "team-a", "--requests-per-minute", "60", "--samples-per-day", "1000", "--weight", "2.5"),
        *("--concurrent-sample-steps", "4000"),
    )
    second = run("new", "--name", "ops", "--scope", "admin", "--scope", "generate")
    file.write_text(first.stdout + second.stdout)
    secrets = [result.stderr.split()[-1] for result in (first, second)]
    assert all(len(key) == 47 and key not in file.read_text() for key in secrets)
    ring = KeyRing(file)
    team, ops = (ring.find(key) for key in secrets)
    assert team is not None
    assert ops is not None
    assert (team.name, team.scopes) == ("team-a", frozenset({Scope.GENERATE}))
    assert (team.requests_per_minute, team.samples_per_day, team.weight) == (60, 1000, 2.5)
    assert team.concurrent_sample_steps == 4000
    assert (ops.name, ops.scopes, ops.samples_per_day) == ("ops", frozenset(Scope), None)
    assert ring.find(secrets[0].lower()) is None
    listed = run("check", MSF_API_KEYS_FILE=str(file))
    assert listed.stdout.splitlines() == [
        "team-a  generate  60 requests/min  1000 samples/day  4000 concurrent sample steps  weight 2.5",
        "ops  admin+generate",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new"], "--name"),
        (["new", "--name", 'a"b'], "'a\"b'. Allowed: 1 to 64 letters"),
        (["new", "--name", "a", "--scope", "write"], "'write' is not one of 'generate', 'admin'"),
        (["new", "--name", "a", "--weight", "0"], "x>0"),
        (["check"], "MSF_API_KEYS_FILE"),
        (["check", "/no/such/file"], "/no/such/file cannot be read: No such file"),
    ],
)
def test_invalid_arguments_are_named(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert message in result.stderr
    assert "[[keys]]" not in result.stdout


def test_a_server_does_not_start_with_an_invalid_key_file(settings: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[[keys]]\nname = "a"\n')
    result = CliRunner().invoke(main, ["serve"], env={**settings, "MSF_API_KEYS_FILE": str(file)})
    assert result.exit_code == 2
    assert f"MSF_API_KEYS_FILE={file}: keys.0.sha256: Field required" in result.output
