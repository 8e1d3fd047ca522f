"""Page of licences, and the list of packages for the audit."""

from __future__ import annotations

import re
from pathlib import Path

from click.testing import CliRunner

from bench.licences import PARTS, command, packages_by_part

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"


def test_the_page_lists_every_shipped_package() -> None:
    text = PAGE.read_text()
    assert all(f"## {title}\n" in text for title in PARTS.values())
    listed = set(re.findall(r"^\| ([\w.-]+) \|", text, re.MULTILINE))
    assert {"fastapi", "starlette", "torch", "openvino", "tensorrt"} <= listed
    assert {name for _, names in packages_by_part() for name in names} <= listed


def test_the_audit_gets_public_versions_of_direct_and_indirect_packages() -> None:
    lines = CliRunner().invoke(command, ["requirements"]).stdout.splitlines()
    packages = dict(line.split("==") for line in lines)
    assert {"fastapi", "starlette", "h11"} <= set(packages)
    assert "msf-serve" not in packages
    assert not [version for version in packages.values() if "+" in version]


def test_every_installed_package_has_a_licence() -> None:
    page = CliRunner().invoke(command, ["licences"]).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert len(rows) > 50
    assert [row for row in rows if row[1] and row[2] in ("", "UNKNOWN")] == []
