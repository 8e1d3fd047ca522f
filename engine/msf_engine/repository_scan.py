"""Contents of a model repository by names alone: which versions it holds, and which folders are none and why.

Each folder is looked at for itself: whatever is wrong with one, the others are listed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from msf_engine.errors import ModelRepositoryError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"0|[1-9][0-9]{0,17}")
NAME_RULE = "a model's name is of a-z 0-9 . _ -, begins with a letter or digit and has at most 64"
VERSION_RULE = "a version is a whole number of at most 18 digits without leading zeros"


@dataclass
class Contents:
    """Versions by model and number, and the reasons why other folders are none; a model's own have no version."""

    versions: list[tuple[str, str]] = field(default_factory=list)
    refusals: dict[tuple[str, str], str] = field(default_factory=dict)


def scan(repository: Path) -> Contents:
    """List a repository. Raises ModelRepositoryError if it is not a folder or cannot be read.

    Skipped are hidden entries, files, and folders that are no model: neither a model's name nor a version inside.
    """
    try:
        entries = _entries(repository)
    except (NotADirectoryError, FileNotFoundError):
        raise ModelRepositoryError(f"model repository {repository} is not a folder") from None
    except OSError as error:
        raise ModelRepositoryError(f"model repository {repository} cannot be read: {error.strerror}") from error
    contents = Contents()
    for entry in entries:
        if not _is_file(entry):
            _scan_model(entry, contents)
    return contents


def list_versions(repository: Path) -> list[tuple[str, str]]:
    """List the name and version of every model, newest last. Raises ModelRepositoryError if there is none."""
    contents = scan(repository)
    if not contents.versions:
        raise ModelRepositoryError(no_models(repository, contents))
    return contents.versions


def no_models(repository: Path, contents: Contents) -> str:
    """Return why a repository without versions has none."""
    reasons = "".join(f"; {printable(name)}: {reason}" for (name, _), reason in contents.refusals.items())
    return f"model repository {repository} has no model (no <model>/<version>/ folder){reasons}"


def printable(name: str) -> str:
    """Return a file's name in a form that can be stored and shown, whatever its bytes are."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _scan_model(model: os.DirEntry[str], contents: Contents) -> None:
    name, is_name = printable(model.name), NAME.fullmatch(model.name)
    try:
        entries = [entry for entry in _entries(model) if entry.name.isnumeric()]
    except OSError as error:
        if is_name:
            contents.refusals[name, ""] = f"the folder cannot be read: {error.strerror}"
        return
    if not is_name:
        contents.refusals |= {(name, printable(entry.name)): NAME_RULE for entry in entries}
    elif not entries:
        contents.refusals[name, ""] = "it has no version folder"
    else:
        for entry in sorted(entries, key=lambda entry: (len(entry.name), entry.name)):
            if not VERSION.fullmatch(entry.name):
                contents.refusals[name, printable(entry.name)] = VERSION_RULE
            elif problem := _folder_problem(entry):
                contents.refusals[name, entry.name] = problem
            else:
                contents.versions.append((name, entry.name))


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.is_dir() and os.path.exists(entry)  # a link that leads nowhere may be meant as a folder
    except OSError:
        return False


def _folder_problem(entry: os.DirEntry[str]) -> str:
    try:
        os.scandir(entry).close()
    except OSError as error:
        return f"the folder cannot be read: {error.strerror}"
    return ""
