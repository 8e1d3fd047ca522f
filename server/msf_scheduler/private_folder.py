"""A data folder that other users cannot read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

OTHERS_CAN_WRITE = 0o022


def make_private(folder: Path, own_names: tuple[str, ...]) -> None:
    """Create the folder, and make what the service wrote there unreadable for other users.

    The service's own files and folders have names that start with one of `own_names`.

    Raises OSError if it cannot be used, PermissionError too if other users could replace what is in it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    names = {entry.name for entry in folder.iterdir()}
    if status.st_uid != os.geteuid():
        reason = f"belongs to another user ({status.st_uid}). Allowed: a folder of your own, such as one in it"
        raise PermissionError(errno.EPERM, reason)
    if status.st_mode & OTHERS_CAN_WRITE:
        if any(not name.startswith(own_names) for name in names):
            reason = "can be written by other users, and holds more than this service's data. Allowed: a folder in it"
            raise PermissionError(errno.EPERM, reason)
        folder.chmod(0o700)
    for name in names:
        if name.startswith(own_names):
            _make_private(folder / name)


def _make_private(path: Path) -> None:
    if path.is_symlink():
        return
    if path.is_dir():
        path.chmod(0o700)
        for entry in path.iterdir():
            _make_private(entry)
    elif not path.is_socket():
        path.chmod(0o600)
