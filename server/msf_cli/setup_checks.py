"""One-line errors for an installation that lacks something: exit status 2, since a restart cannot help."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import click


class IncompleteSetup(click.ClickException):
    """A missing model or library: one line that says what to do, and exit status 2."""

    exit_code = 2


def missing_package(command: str, module: str) -> IncompleteSetup:
    """Return the error that says what to install."""
    extra = "load" if command == "load" else "worker"
    return IncompleteSetup(f"msf {command} needs {module}. Install it: pip install 'msf-serve[{extra}]'")


def require_package(command: str, module: str) -> None:
    """Raise IncompleteSetup unless `module` is installed."""
    if find_spec(module) is None:
        raise missing_package(command, module)


def engine_failure(error: Exception) -> click.ClickException:
    """Return the error of a command for one of the engine: an IncompleteSetup if a package is missing."""
    return (IncompleteSetup if isinstance(error.__cause__, ImportError) else click.ClickException)(str(error))


def require_models(repository: Path) -> None:
    """Raise IncompleteSetup, with the way to get a model, unless `repository` has a model version."""
    try:
        os.scandir(repository).close()
        if any(folder.name.isdecimal() for folder in repository.glob("[!.]*/*")):
            return
        problem = "has no model (no <model>/<version>/ folder)"
    except (FileNotFoundError, NotADirectoryError):
        problem = "is not a folder"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise IncompleteSetup(
        f"MSF_MODEL_REPO={str(repository)!r} {problem}. Get a model with 'msf models pull SOURCE', "
        "or set MSF_MODEL_REPO to a folder that has one."
    )
