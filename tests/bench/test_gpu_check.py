from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.gpu import check
from bench.gpu.check import Part
from tests.polling import until

PATH = os.pathsep.join(sys.path)


def test_a_part_is_stopped_at_its_limit_with_its_output_and_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    row = check.run(Part("bench", ("-c", script), 2, {}), tmp_path, PATH)
    assert row.startswith("| bench | stopped at its limit of 2 s | ")
    pid = (tmp_path / "bench.log").read_text().split()[1]
    until(lambda: not _is_running(pid))


def _is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failed_part_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {"tests": "raise SystemExit('no | GPU')", "service": "print('40 images/s')"}
    few_parts = [Part(name, ("-c", script), 60, {}) for name, script in commands.items()]
    monkeypatch.setattr(check, "parts", lambda out, scratch, is_dry_run: few_parts)
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(tmp_path / "out")])
    assert check.main() == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| tests | failed with status 1 |" in summary
    assert "no / GPU |" in summary
    assert "| service | passed |" in summary
    assert summary in capsys.readouterr().out
