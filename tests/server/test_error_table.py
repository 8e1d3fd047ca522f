"""docs/errors.md lists every error code with its HTTP status."""

from __future__ import annotations

import re
from pathlib import Path

from msf_scheduler.error_codes import ErrorCode
from msf_server.errors import ANSWERS

ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \|", re.MULTILINE)


def test_every_code_has_an_answer() -> None:
    assert set(ANSWERS) == set(ErrorCode)


def test_documented_codes_and_statuses_are_complete() -> None:
    rows = ROW.findall((Path(__file__).parents[2] / "docs/errors.md").read_text())
    assert sorted(rows) == sorted((str(status), code) for code, (status, _) in ANSWERS.items())
