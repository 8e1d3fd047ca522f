"""Copy model versions from a folder, a web server or an object store into a model repository.

The source has the layout of a repository: `<model>/<version>/SHA256SUMS`, the files that it lists, and a `README.md`.
Files arrive in a hidden folder of the repository, which survives an interruption; a version appears in the repository
only when it is complete and all its checksums agree. A lock file admits one pull of a model at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from msf_engine.errors import ModelRepositoryError
from msf_engine.repository import NAME, read_version, weight_parts
from msf_scheduler.stage import Stage

EXTRAS = {"http": "pull", "https": "pull", "s3": "s3", "gs": "gs", "gcs": "gs"}  # of this distribution, by scheme
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


def open_sources(url: str) -> list[ModelSource]:
    """Find the model versions at `url`: that version, the newest of a model, or all versions of a repository.

    Raises PullError.
    """
    scheme, separator, _ = url.partition("://")
    url = url if separator else os.path.expanduser(url)
    try:
        files, root = fsspec.url_to_fs(url.rstrip("/"))
    except ImportError as error:
        extra = f" (pip install 'msf-serve[{EXTRAS[scheme]}]')" if scheme in EXTRAS else ""
        raise PullError(f"{scheme}:// needs another package: {error}{extra}") from error
    except (ValueError, OSError) as error:
        raise PullError(f"Invalid source {url!r}: {error}. Allowed: a path, https://, s3://, gs://, hf://.") from error
    if _is_version(PurePosixPath(root).name):
        return [ModelSource(files, root)]
    names = _list(files, root)
    if versions := _versions(names):
        return [ModelSource(files, f"{root}/{versions[-1]}")]
    models = [name for name in names if NAME.fullmatch(name) and files.isdir(f"{root}/{name}")]
    sources = [
        ModelSource(files, f"{root}/{model}/{version}")
        for model in models
        for version in _versions(_list(files, f"{root}/{model}"))
    ]
    if not sources:
        raise PullError(
            f"No model version in {url}. Allowed: the folder of a version (emoji/1), of a model or of a repository."
        )
    return sources


def pull(source: ModelSource, repository: Path, name: str, progress: Progress) -> Path:
    """Copy a version into `repository` as a version of model `name`; return its folder. Raises PullError, OSError."""
    if not NAME.fullmatch(name):
        raise PullError(f"Invalid model name {name!r}. Allowed: 1 to 64 of a-z, 0-9, '.', '_' and '-'; see --name.")
    try:
        sums = source.read(SUMS)
    except FileNotFoundError as error:
        raise PullError(f"No {SUMS} in {source.root}. Allowed: the folder of a model version.") from error
    digests = _parse_sums(sums)
    _check_complete(digests, source)
    repository.mkdir(parents=True, exist_ok=True)
    with _lock(repository, name):
        version = repository / name / source.version
        if version.exists():
            _check_existing(version, {SUMS: hashlib.sha256(sums).hexdigest(), **digests})
            _check_nothing_missing(version, [SUMS, *digests])
        else:
            shared = {file: digest for file, digest in digests.items() if file.startswith("../")}
            _check_existing(version, shared)
            _fetch_version(source, repository, name, sums, digests, progress)
    return version


def _list(files: Any, folder: str) -> list[str]:
    """Return the names in a folder of the source. Raises PullError."""
    try:
        return sorted(PurePosixPath(path).name for path in files.ls(folder, detail=False))
    except Exception as error:
        raise PullError(f"Cannot list {folder}: {error or type(error).__name__}") from error


def _versions(names: list[str]) -> list[str]:
    return sorted(filter(_is_version, names), key=int)


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal()


@contextlib.contextmanager
def _lock(repository: Path, name: str) -> Iterator[None]:
    """Hold the lock of a model's pulls. Raises PullError if another process holds it."""
    with (repository / f".pull-{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PullError(f"Another pull of {name} into {repository} is running. Wait until it ends.") from error
        yield


def _parse_sums(sums: bytes) -> dict[str, str]:
    """Return the digests by file name; names that lead out of the model's folder are refused."""
    digests = {}
    for line in sums.decode(errors="replace").splitlines():
        match = _LISTED.fullmatch(line)
        if match is None:
            raise PullError(f"Invalid line {line!r} in {SUMS}. Allowed: a SHA-256 and a file of the version.")
        digests[match["name"]] = match["digest"]
    return digests


def _check_complete(digests: dict[str, str], source: ModelSource) -> None:
    """Require weights of all parts, a config and labels."""
    layouts = (weight_parts(stages) for stages in ([Stage.BASE, Stage.RESIDUAL], [Stage.DENOISE]))
    files = ([f"{part}.safetensors" for part in parts] for parts in layouts)
    missing = min(([file for file in layout if file not in digests] for layout in files), key=len)
    if digests.keys().isdisjoint({"config.json", "../config.json"}):
        missing.append("../config.json")
    if "../labels.json" not in digests:
        missing.append("../labels.json")
    if missing:
        raise PullError(f"{SUMS} of {source.root} does not list {', '.join(missing)}. Allowed: a complete version.")


def _check_nothing_missing(version: Path, names: list[str]) -> None:
    """Refuse to report an incomplete version of the repository as complete."""
    for name in names:
        if not (version / name).exists():
            raise PullError(f"{version} exists without {PurePosixPath(name).name}. Remove the folder and pull again.")


def _check_existing(folder: Path, digests: dict[str, str]) -> None:
    """Refuse to replace files of the repository by different ones."""
    for name, digest in digests.items():
        file = Path(posixpath.normpath(folder / name))
        if file.exists() and _digest(file) != digest:
            raise PullError(f"{file} exists and differs from the source. Choose another model name with --name.")


def _fetch_version(
    source: ModelSource, repository: Path, name: str, sums: bytes, digests: dict[str, str], progress: Progress
) -> None:
    """Fetch a version into a hidden folder, which a repository skips; validate and publish it."""
    partial = repository / f".pull-{name}-{source.version}"
    folder = partial / name / source.version
    if partial.exists() and (not (folder / SUMS).exists() or (folder / SUMS).read_bytes() != sums):
        shutil.rmtree(partial)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).write_bytes(sums)
    for file, digest in digests.items():
        _fetch(source, file, folder / file, digest, progress)
    try:
        read_version(partial, name, source.version)
    except ModelRepositoryError as error:
        shutil.rmtree(partial)
        raise PullError(f"{source.root} is not a valid model: {error}") from error
    with contextlib.suppress(FileNotFoundError, PullError):
        (folder / README).write_bytes(source.read(README))
    _publish(partial / name, repository / name, source.version)
    shutil.rmtree(partial)


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


def _publish(fetched: Path, model: Path, version: str) -> None:
    """Move a complete version into the repository by one rename."""
    if model.exists():
        for file in fetched.iterdir():
            if file.is_file() and not (model / file.name).exists():
                file.rename(model / file.name)
        (fetched / version).rename(model / version)
    else:
        fetched.rename(model)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
