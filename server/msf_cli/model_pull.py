"""Copy a model version from a folder, a web server or an object store into a model repository.

The source has the layout of a repository: `<model>/<version>/SHA256SUMS`, the files that it lists, and a `README.md`.
Files arrive in a hidden folder of the repository, which survives an interruption; a version appears in the repository
only when all its checksums agree.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from msf_engine.repository import NAME

SCHEMES = ("file", "http", "https", "s3", "gs", "hf")
SUMS = "SHA256SUMS"
README = "../README.md"  # optional, and in no SHA256SUMS
CHUNK_BYTES = 16 * 2**20
_LISTED = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>(\.\./(config|labels)\.json)|[A-Za-z0-9][A-Za-z0-9._-]*)")

Progress = Callable[[str, int, int], None]  # file name, bytes so far, size in bytes


class PullError(Exception):
    """The source has no usable model, or the repository has no place for it."""


@dataclass(frozen=True)
class ModelSource:
    """Folder of one model version at `root` of an fsspec file system."""

    files: Any
    root: str

    @property
    def name(self) -> str:
        return posixpath.basename(posixpath.dirname(self.root))

    @property
    def version(self) -> str:
        return posixpath.basename(self.root)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or a range of its bytes. Raises FileNotFoundError, PullError."""
        try:
            content: bytes = self.files.cat_file(self._path(name), start=start, end=end)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise PullError(f"Cannot read {self._path(name)}: {error or type(error).__name__}") from error
        return content

    def size(self, name: str) -> int | None:
        """Return the size in bytes, None where the source does not tell. Raises PullError."""
        try:
            size: int | None = self.files.size(self._path(name))
        except Exception as error:
            raise PullError(f"Cannot read {self._path(name)}: {error or type(error).__name__}") from error
        return size

    def _path(self, name: str) -> str:
        parent, _, leaf = name.rpartition("/")
        return f"{posixpath.dirname(self.root) if parent else self.root}/{leaf}"


def open_source(url: str) -> ModelSource:
    """Find the model version at `url`: a version's folder, or a model's, of which it takes the newest version.

    Raises PullError.
    """
    scheme, separator, _ = url.partition("://")
    if separator and scheme not in SCHEMES:
        raise PullError(f"Unknown scheme {scheme!r} in {url!r}. Allowed: a path, {'://, '.join(SCHEMES[1:])}://.")
    try:
        files, root = fsspec.url_to_fs(url.rstrip("/"))
    except ImportError as error:
        extra = " (pip install 'msf-serve[pull]')" if scheme in ("http", "https") else ""
        raise PullError(f"{scheme}:// needs another package: {error}{extra}") from error
    if PurePosixPath(root).name.isdigit():
        return ModelSource(files, root)
    try:
        names = [PurePosixPath(path).name for path in files.ls(root, detail=False)]
    except Exception as error:
        raise PullError(f"Cannot list {url}: {error or type(error).__name__}") from error
    versions = sorted((name for name in names if name.isdigit()), key=int)
    if not versions:
        raise PullError(f"No model version in {url}. Allowed: the folder of a model, or of a version, such as emoji/1.")
    return ModelSource(files, f"{root}/{versions[-1]}")


def pull(source: ModelSource, repository: Path, name: str, progress: Progress) -> Path:
    """Copy a version into `repository` as a version of model `name`; return its folder. Raises PullError, OSError."""
    if not NAME.fullmatch(name):
        raise PullError(f"Invalid model name {name!r}. Allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'; see --name.")
    try:
        sums = source.read(SUMS)
    except FileNotFoundError as error:
        raise PullError(f"No {SUMS} in {source.root}. Allowed: the folder of a model version.") from error
    digests = _parse_sums(sums)
    model, version = repository / name, repository / name / source.version
    if version.exists():
        _check_existing(version, {SUMS: hashlib.sha256(sums).hexdigest(), **digests})
        return version
    _check_existing(model / "1", {file: digest for file, digest in digests.items() if file.startswith("../")})

    partial = repository / f".pull-{name}-{source.version}"  # a repository skips hidden folders
    folder = partial / source.version
    if folder.exists() and (not (folder / SUMS).exists() or (folder / SUMS).read_bytes() != sums):
        shutil.rmtree(partial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).write_bytes(sums)
    for file, digest in digests.items():
        _fetch(source, file, folder / file, digest, progress)
    with contextlib.suppress(FileNotFoundError):
        (folder / README).write_bytes(source.read(README))
    _publish(partial, model, source.version)
    return version


def _parse_sums(sums: bytes) -> dict[str, str]:
    """Return the digests by file name; names that lead out of the model's folder are refused."""
    digests = {}
    for line in sums.decode(errors="replace").splitlines():
        match = _LISTED.fullmatch(line)
        if match is None:
            raise PullError(f"Invalid line {line!r} in {SUMS}. Allowed: a SHA-256 and a file of the version.")
        digests[match["name"]] = match["digest"]
    return digests


def _check_existing(folder: Path, digests: dict[str, str]) -> None:
    """Refuse to replace files of the repository by different ones."""
    for name, digest in digests.items():
        file = Path(posixpath.normpath(folder / name))
        if file.exists() and _digest(file) != digest:
            raise PullError(f"{file} exists and differs from the source. Choose another model name with --name.")


def _fetch(source: ModelSource, name: str, file: Path, digest: str, progress: Progress) -> None:
    """Fetch one file, from where an earlier attempt stopped."""
    size = source.size(name)
    start = file.stat().st_size if file.exists() else 0
    if size is None or start > size:
        start = 0
    with file.open("ab") as output:
        output.truncate(start)
        while size is None or start < size:
            chunk = source.read(name, start, None if size is None else min(start + CHUNK_BYTES, size))
            if size is None or len(chunk) == size:  # a server without range requests sends the whole file
                output.truncate(start := 0)
                size = len(chunk)
            if not chunk:
                raise PullError(f"{name} ends after {start} of {size} bytes. Run the command again to resume.")
            output.write(chunk)
            start += len(chunk)
            progress(PurePosixPath(name).name, start, size)
    if _digest(file) != digest:
        file.unlink()
        raise PullError(f"{name} of {source.root} is damaged: its SHA-256 differs from {SUMS}. Run the command again.")


def _publish(partial: Path, model: Path, version: str) -> None:
    """Move a complete version into the repository by one rename."""
    if model.exists():
        for file in partial.iterdir():
            if file.is_file() and not (model / file.name).exists():
                file.rename(model / file.name)
        (partial / version).rename(model / version)
        shutil.rmtree(partial)
    else:
        partial.rename(model)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
