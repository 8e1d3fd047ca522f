"""`msf plan`: its estimate, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from msf_cli.commands.plan import command


@pytest.fixture
def costs_file(tmp_path: Path) -> Path:
    file = tmp_path / "costs.json"
    rows = [
        {"stage": stage, "bucket": bucket, "mean_s": 0.004 * bucket**0.7, "least_s": 0.003}
        for stage in ("base", "residual", "decode")
        for bucket in (1, 4, 16)
    ]
    file.write_text(json.dumps(rows))
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_plan_prints_the_number_of_workers(costs_file: Path) -> None:
    """Numbers may be text, and unknown fields are ignored."""
    rows = [{**row, "mean_s": str(row["mean_s"]), "device": "cpu"} for row in json.loads(costs_file.read_text())]
    costs_file.write_text(json.dumps(rows))
    result = run("--images-per-s", 10, "--p99-s", 1, "--costs", costs_file)
    assert result.exit_code == 0, result.output
    assert "workers make 10 images/s at a p99 of 1 s" in result.output


def test_an_unreachable_latency_is_an_error(costs_file: Path) -> None:
    result = run("--images-per-s", 1, "--p99-s", 0.01, "--costs", costs_file)
    assert result.exit_code == 1
    assert "--p99-s 0.01 cannot be met: one job alone takes" in result.output


ROW = {"stage": "base", "bucket": 1, "mean_s": 1, "least_s": 1}


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{}],
        {},
        {"a": 1},
        [1],
        3,
        [ROW | {"mean_s": "fast"}],
        [ROW | {"least_s": None}],
        [ROW | {"mean_s": "nan"}],
        [ROW, ROW],
    ],
)
def test_a_file_without_costs_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "none.json"
    file.write_text(json.dumps(content))
    result = run("--images-per-s", 1, "--p99-s", 1, "--costs", file)
    assert result.exit_code == 2
    assert "--costs" in result.output
    assert "Allowed: a file that --save-costs wrote" in result.output
