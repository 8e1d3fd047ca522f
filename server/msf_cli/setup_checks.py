"""One-line errors for an installation that lacks something: exit status 2, since a restart cannot help."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from msf_cli.settings import WorkerProcessSettings


EXIT_INTERRUPTED = 130  # as shells report SIGINT


class IncompleteSetup(click.ClickException):
    """Something that a command cannot start without: one line that says what to do, and exit status 2."""

    exit_code = 2


def missing_package(command: str, module: str, extra: str = "") -> IncompleteSetup:
    """Return the error that says what to install."""
    extra = extra or ("load" if command == "load" else "worker")
    return IncompleteSetup(f"msf {command} needs {module}. Install it: pip install 'msf-serve[{extra}]'")


def require_package(command: str, module: str, extra: str = "") -> None:
    """Raise IncompleteSetup unless `module` is installed."""
    if find_spec(module) is None:
        raise missing_package(command, module, extra)


def engine_failure(error: Exception) -> click.ClickException:
    """Return the error of a command for one of the engine: of a model, a plan or a package."""
    return IncompleteSetup(str(error))


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


def require_worker_folders(settings: WorkerProcessSettings) -> None:
    """Create the folders of plans and of timelines. Raises IncompleteSetup."""
    for variable, folder in (("MSF_CACHE_DIR", settings.cache_dir), ("MSF_TRACE_DIR", settings.trace_dir)):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{variable}={str(folder)!r}: {error.strerror}. Allowed: a folder that can be written."
            raise IncompleteSetup(message) from error
