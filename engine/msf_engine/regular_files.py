"""Reads of files that somebody else puts there: none waits for a pipe, or reads a device without end."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

MAX_SMALL_BYTES = 16 * 2**20  # of configs, labels and checksums


def open_regular(file: Path) -> BufferedReader:
    """Open a regular file to read it. Raises OSError, also for anything else; ValueError for an impossible name."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    opened = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    if opened is None:
        os.close(descriptor)
        raise OSError("not a regular file")
    return opened


def read_small(file: Path) -> bytes:
    """Read a file of at most MAX_SMALL_BYTES. Raises as `open_regular`."""
    with open_regular(file) as opened:
        content = opened.read(MAX_SMALL_BYTES + 1)
    if len(content) > MAX_SMALL_BYTES:
        raise ValueError(f"it is larger than {MAX_SMALL_BYTES} bytes")
    return content
