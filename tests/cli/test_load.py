"""`msf load`, against a small server."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from msf_cli.commands.load import command
from tests.cli.load.support import Answer, Fake, refusal, serving, succeed

MIX = ("--steps", "4:3,20:1", "--n", "1:1,4:1")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_a_sweep_prints_a_table_for_each_rate_and_writes_all_as_json(tmp_path: Path) -> None:
    file = tmp_path / "load.json"
    with serving(Fake()) as fake:
        arguments = ("--rates", "40,80", "--duration-s", "0.5", "--alone-runs", "1", "--json", str(file), *MIX)
        fields = ("--priority", "high", "--user", "ann", "--timeout-s", "9", "--body", '{"output_format": "webp"}')
        result = run("--url", fake.url, *arguments, *fields)
    assert result.exit_code == 0, result.output
    assert "goodput/s 3x" in result.stdout.splitlines()[0]
    assert "requests/s offered: " in result.stdout
    assert "20 steps, n=4" in result.stdout
    assert "measuring each kind alone" in result.stderr

    written = json.loads(file.read_text())
    assert set(written["alone_s"]) == {"4 steps, n=1", "4 steps, n=4", "20 steps, n=1", "20 steps, n=4"}
    assert [one["asked_per_s"] for one in written["runs"]] == [40, 80]
    sent = [one["overall"]["outcomes"]["succeeded"] for one in written["runs"]]
    assert sum(sent) + 2 * 4 == len(fake.bodies)
    assert [one["offered_per_s"] for one in written["runs"]] == [number / 0.5 for number in sent]
    assert set(written["runs"][0]["overall"]["slo_attainment"]) == {"3.0", "5.0"}
    fields_sent = {"output_format": "webp", "priority": "high", "user": "ann", "timeout_s": 9.0, "cache": False}
    assert all(fields_sent.items() <= body.items() for body in fake.bodies)


def test_a_trace_is_replayed_at_its_own_times(tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text(
        "Request(request_id='1', prompt='a fox', num_inference_steps=20, timestamp=10.0, seed=7, slo_ms=5000)\n"
        "Request(request_id='2', prompt='a lake', num_inference_steps=4, timestamp=10.2, slo_ms=0.001)\n"
    )
    report = tmp_path / "load.json"
    with serving(Fake()) as fake:
        result = run("--url", fake.url, "--trace", str(file), "--alone-runs", "0", "--json", str(report))
    assert result.exit_code == 0, result.output
    assert sorted((body["num_steps"], body["seed"] == 7) for body in fake.bodies) == [(4, False), (20, True)]
    (only,) = json.loads(report.read_text())["runs"]
    assert only["asked_per_s"] is None
    assert only["overall"]["slo_attainment"]["3.0"] == 0.5


def test_ctrl_c_reports_the_results_so_far(tmp_path: Path) -> None:
    resume = threading.Event()

    def interrupt_at_the_third(body: dict[str, Any]) -> Answer:
        if len(fake.bodies) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if len(fake.bodies) >= 3:
            resume.wait(60)
        return succeed(body)

    file = tmp_path / "load.json"
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with serving(Fake(interrupt_at_the_third)) as fake:
        result = run("--url", fake.url, "--rate", "20", "--duration-s", "600", "--alone-runs", "0", "--json", str(file))
        resume.set()
    signal.signal(signal.SIGINT, handler)
    assert result.exit_code == 130, result.output
    assert "unfinished in" in result.stdout
    (only,) = json.loads(file.read_text())["runs"]
    assert only["overall"]["outcomes"]["unfinished"] >= 1


def test_a_server_that_refuses_the_requests_is_not_loaded() -> None:
    with serving(Fake(lambda _: refusal(400, "invalid_value"))) as fake:
        result = run("--url", fake.url, "--rate", "5")
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("Error: A request alone (default steps, n=1) failed: 400")
    assert len(fake.bodies) == 1


def test_an_unreachable_server_is_named() -> None:
    with serving(Fake()) as fake:
        pass
    result = run("--url", fake.url, "--rate", "5")
    assert result.exit_code == 1
    assert f"Error: Cannot list the models of {fake.url}" in result.output


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("--rate",)),
        (("--rate", "0"), ("--rate", "'0'", "above 0")),
        (("--rates", "5,x"), ("--rate", "'5,x'", "such as 5,10,20")),
        (("--rate", "nan"), ("--rate", "'nan'", "above 0")),
        (("--rate", "5", "--duration-s", "-1"), ("--duration-s", "'-1'", "above 0")),
        (("--rate", "5", "--timeout-s", "inf"), ("--timeout-s", "'inf'", "above 0")),
        (("--rate", "5", "--steps", "4:x"), ("--steps", "'4:x'", "4:3,20:5")),
        (("--rate", "5", "--steps", "4.5"), ("--steps", "'4.5'")),
        (("--rate", "5", "--guidance", "nan"), ("--guidance", "'nan'")),
        (("--rate", "5", "--slo-scale", "2,,3"), ("--slo-scale", "'2,,3'")),
        (("--trace", "no/such/file"), ("--trace", "no/such/file")),
        (("--rate", "5", "--arrivals", "even"), ("--arrivals", "'even'", "'poisson'")),
        (("--rate", "5", "--burstiness", "2"), ("--burstiness", "--arrivals bursty")),
        (("--rate", "5", "--arrivals", "bursty", "--burstiness", "6"), ("--burstiness", "1<=x<=5")),
        (("--rate", "5", "--body", "[1]"), ("--body", "'[1]'", "a JSON object")),
        (("--rate", "5", "--body", '{"a": NaN}'), ("--body", "a JSON object")),
        (("--rate", "5", "--json", "no/such/file.json"), ("--json", "no/such is not a folder")),
        (("--rate", "5", "--url", "localhost"), ("localhost",)),
    ],
)
def test_invalid_options_are_refused_before_the_load(arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code != 0
    error = result.output.splitlines()[-1]
    assert error.startswith("Error: ")
    for part in parts:
        assert part in error
