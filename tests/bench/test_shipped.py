"""The page of licences and the list that is audited name what we ship."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from bench.licences import command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("part", ["", "worker", "tensorrt", "tensorrt-rtx"])
def test_every_package_that_we_ask_for_is_on_the_page(part: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        Requirement(line).name for line in (project["optional-dependencies"][part] if part else project["dependencies"])
    }
    listed = set(re.findall(r"^\| ([\w.-]+) \|", (ROOT / "docs/licences.md").read_text(), re.MULTILINE))
    assert wanted <= listed


def test_the_audit_gets_public_versions_of_direct_and_indirect_packages() -> None:
    lines = CliRunner().invoke(command, ["requirements"]).stdout.splitlines()
    packages = dict(line.split("==") for line in lines)
    assert {"fastapi", "starlette", "h11"} <= set(packages)
    assert "msf-serve" not in packages
    assert not [version for version in packages.values() if "+" in version]


def test_every_installed_package_says_its_licence() -> None:
    page = CliRunner().invoke(command, ["licences"]).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row[1] and not row[2]] == []
    assert "see the package" not in page
