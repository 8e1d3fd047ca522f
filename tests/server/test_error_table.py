"""The error table in docs/errors.md is complete and gives the right statuses."""

from __future__ import annotations

import re
from http import HTTPStatus
from pathlib import Path

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobError
from msf_server.errors import ApiError, JobFailed

ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \|", re.MULTILINE)


def rows() -> dict[str, int]:
    """The documented HTTP status of each code."""
    matches = ROW.findall((Path(__file__).parents[2] / "docs/errors.md").read_text())
    table = {code: int(status) for status, code in matches}
    assert len(table) == len(matches), "a code is in the table twice"
    return table


def test_every_code_is_documented() -> None:
    assert set(rows()) == set(ErrorCode)


def test_statuses_match_the_exceptions() -> None:
    table = rows()
    pending: list[type[ApiError]] = [ApiError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "code" in vars(kind):
            status = 499 if kind.code in (ErrorCode.CANCELLED, ErrorCode.CLIENT_GONE) else int(kind.status)
            assert table[kind.code] == status, kind.code
    failure = JobFailed("1", JobError(code=ErrorCode.POISONED, message=""))
    assert failure.status_code == HTTPStatus.INTERNAL_SERVER_ERROR == table[ErrorCode.POISONED]
