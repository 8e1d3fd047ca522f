"""Data that a power failure has damaged: repaired where nothing is lost, else named at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis import Redis

from msf_cli.main import main
from msf_scheduler.embedded_valkey import EmbeddedValkey
from msf_scheduler.errors import QueueUnavailable

KEYS = ("first", "second", "third")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Data of a server that has ended, with three keys."""
    with EmbeddedValkey(tmp_path) as valkey, Redis.from_url(valkey.url) as redis:
        for key in KEYS:
            redis.set(key, "value")
    return tmp_path


@pytest.fixture
def file(data_dir: Path) -> Path:
    [file] = (data_dir / "appendonlydir").glob("*.incr.aof")
    return file


def num_keys(data_dir: Path) -> int:
    with EmbeddedValkey(data_dir) as valkey, Redis.from_url(valkey.url) as redis:
        return len([value for value in redis.mget(KEYS) if value])


def repair(data_dir: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["data", "repair", *options], env={"MSF_DATA_DIR": str(data_dir)})
    return result.exit_code, result.output


@pytest.mark.parametrize("num_bytes", [1, 100, 5000])
def test_nul_bytes_behind_the_last_job_are_cut(
    data_dir: Path, file: Path, num_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    with file.open("ab") as content:
        content.write(bytes(num_bytes))
    assert num_keys(data_dir) == 3
    assert f"cut {num_bytes} NUL bytes" in caplog.text
    [backup] = data_dir.glob("damaged-*/*")
    assert backup.read_bytes() == bytes(num_bytes)


def test_an_incomplete_last_job_is_dropped(data_dir: Path, file: Path) -> None:
    os.truncate(file, file.stat().st_size - 5)
    assert num_keys(data_dir) == 2


def test_damage_that_costs_jobs_is_named_and_repaired_on_request_only(data_dir: Path, file: Path) -> None:
    content = bytearray(file.read_bytes())
    position = content.index(b"second") - 12
    content[position : position + 4] = b"XXXX"
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(QueueUnavailable, match=r"cannot be read beyond byte \d+ of \d+. Repair it with 'msf data"):
            EmbeddedValkey(data_dir).start()
        assert repair(data_dir)[0] != 0
    assert file.read_bytes() == content
    status, output = repair(data_dir, "--yes")
    assert (status, "they are kept in" in output) == (0, True), output
    assert num_keys(data_dir) == 1
    [backup] = data_dir.glob("damaged-*/*")
    assert b"third" in backup.read_bytes()


@pytest.mark.parametrize("manifest", ["garbage\n", "", None])
def test_a_damaged_manifest_never_starts_an_empty_server_and_is_rebuilt(data_dir: Path, manifest: str | None) -> None:
    file = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    original = file.read_text()
    if manifest is None:
        file.unlink()
    else:
        file.write_text(manifest)
    with pytest.raises(QueueUnavailable, match="manifest is missing or damaged"):
        EmbeddedValkey(data_dir).start()
    assert repair(data_dir)[0] == 0
    assert file.read_text() == original
    assert num_keys(data_dir) == 3


def test_remains_of_a_power_failure_do_not_matter(data_dir: Path) -> None:
    (data_dir / "owner").write_text("unix:///gone/valkey.sock\n1")
    (data_dir / "valkey.sock").touch()
    (data_dir / "server").touch()
    assert num_keys(data_dir) == 3


def test_a_running_service_is_not_repaired(data_dir: Path) -> None:
    with EmbeddedValkey(data_dir):
        status, output = repair(data_dir)
    assert (status, "Stop it first" in output) == (2, True)
    assert repair(data_dir) == (0, "No damage found.\n")
