"""docs/errors.md has every code that the service answers with, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

from msf_scheduler.jobs import JobError
from msf_server.errors import ApiError, JobFailed

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \|", re.MULTILINE)
SOURCES = ("server/msf_server", "server/msf_scheduler", "engine/msf_worker")
ROUTING = {"not_found", "method_not_allowed"}  # made of the status's phrase


def codes_in_source() -> set[str]:
    return {
        code
        for package in SOURCES
        for file in (ROOT / package).rglob("*.py")
        for code in _codes(ast.parse(file.read_text()))
    }


def _codes(tree: ast.AST) -> Iterator[str]:
    """Strings given as an argument `code`, assigned to a name `code`, or handed to a worker's `fail`."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="code", value=value):
                yield from _strings(value)
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                yield from _strings(value)
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.expr() as value):
                yield from _strings(value)
            case ast.Call(func=ast.Attribute(attr="fail"), args=[_, ast.Constant(value=str(code)), *_]):
                yield code


def _strings(value: ast.expr) -> Iterator[str]:
    match value:
        case ast.Constant(value=str(code)):
            yield code
        case ast.Call(func=ast.Attribute(value=ast.Dict(values=values), attr="get")):
            for each in values:
                yield from _strings(each)


def rows() -> dict[str, int]:
    found = ROW.findall((ROOT / "docs/errors.md").read_text())
    table = {code: int(status) for status, code in found}
    assert len(table) == len(found), "a code is in the table twice"
    return table


def test_every_code_is_explained_and_none_is_invented() -> None:
    assert set(rows()) == codes_in_source() | ROUTING


def test_statuses_are_those_of_the_errors() -> None:
    table = rows()
    pending: list[type[ApiError]] = [ApiError]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        if "code" in vars(kind):
            status = 499 if kind.code in ("cancelled", "client_gone") else int(kind.status)
            assert table[kind.code] == status, kind.code
    failure = JobFailed("1", JobError(code="poisoned", message=""))
    assert failure.status_code == HTTPStatus.INTERNAL_SERVER_ERROR == table["poisoned"]
