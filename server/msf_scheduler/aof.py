"""Append-only file of the embedded Valkey: find damage that keeps Valkey from loading it, and repair it.

Valkey itself drops a last command that is incomplete. A power failure may also leave NUL bytes behind the last
command; they hold nothing, so they are cut without asking. All else is left to `msf data repair`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

FOLDER = "appendonlydir"
NAME = "appendonly.aof"
MANIFEST = f"{NAME}.manifest"
CHUNK_BYTES = 2**20
_LINE = re.compile(rf"file ({re.escape(NAME)}\.\d+\.(?:base|incr)\.(?:rdb|aof)) seq (\d+) type ([bhi])( .*)?")
_FILE = re.compile(rf"{re.escape(NAME)}\.(\d+)\.(base|incr)\.(rdb|aof)")


class DataDamaged(Exception):
    """The data cannot be loaded; the message says what is damaged, in one line."""


@dataclass(frozen=True)
class Tail:
    """End of a file that holds no whole commands: all behind the first `num_valid_bytes` bytes."""

    file: Path
    num_valid_bytes: int
    num_bytes: int

    def is_empty(self) -> bool:
        """Return whether the tail holds nothing but NUL bytes."""
        with self.file.open("rb") as content:
            content.seek(self.num_valid_bytes)
            while chunk := content.read(CHUNK_BYTES):
                if chunk.strip(b"\0"):
                    return False
        return True

    def cut(self, backup: Path) -> None:
        """Remove the tail, after a copy of it was stored in the folder `backup`."""
        backup.mkdir(mode=0o700, exist_ok=True)
        with self.file.open("r+b") as content, (backup / f"{self.file.name}.tail").open("wb") as copy:
            content.seek(self.num_valid_bytes)
            shutil.copyfileobj(content, copy)
            content.truncate(self.num_valid_bytes)


class _Part(NamedTuple):
    sequence: int
    kind: str
    file: Path


def check_manifest(data_dir: Path) -> None:
    """Raise DataDamaged unless the manifest lists the files: without one, Valkey would start empty, over the data."""
    folder = data_dir / FOLDER
    if not _parts(folder):
        return
    try:
        lines = (folder / MANIFEST).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    if not lines or not all(_LINE.fullmatch(line) for line in lines):
        raise DataDamaged(f"{folder / MANIFEST} is missing or damaged")


def find_tail(data_dir: Path, program: str) -> Tail | None:
    """Return the end of the newest file that Valkey cannot read, None if there is none. `program` is Valkey's."""
    parts = [part for part in _parts(data_dir / FOLDER) if part.kind == "incr"]
    if not parts:
        return None
    file = parts[-1].file
    checker = f"{Path(program).name.partition('-')[0]}-check-aof"  # the server is its own checker under this name
    done = subprocess.run([checker, file], executable=program, capture_output=True, text=True, check=False)
    match = re.search(r"size=(\d+), ok_up_to=(\d+)", done.stdout)
    if match is None or done.returncode == 0:
        return None
    return Tail(file, int(match[2]), int(match[1]))


def rebuild_manifest(data_dir: Path, backup: Path) -> None:
    """Write a manifest of the files that are there. Raises DataDamaged where it is unknown which of them are valid."""
    folder = data_dir / FOLDER
    parts = _parts(folder)
    if sum(part.kind == "base" for part in parts) > 1:
        raise DataDamaged(f"{folder} has several base files, and no manifest says which is the newest")
    backup.mkdir(mode=0o700, exist_ok=True)
    if (folder / MANIFEST).exists():
        shutil.copy(folder / MANIFEST, backup / MANIFEST)
    lines = [f"file {part.file.name} seq {part.sequence} type {part.kind[0]}\n" for part in parts]
    (folder / MANIFEST).write_text("".join(lines))


def _parts(folder: Path) -> list[_Part]:
    """Return the files of the data, base first, in the order in which Valkey reads them."""
    matches = [(match, file) for file in folder.glob(f"{NAME}.*") if (match := _FILE.fullmatch(file.name))]
    return sorted((_Part(int(match[1]), match[2], file) for match, file in matches), key=lambda part: part[1::-1])
