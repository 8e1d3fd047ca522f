"""Cache of compiled plans and their validations on disk."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock

from msf_engine.errors import PlanError
from msf_engine.options import DEFAULT_PLAN_CACHE_BYTES
from msf_engine.plan import PlanSpec
from msf_engine.plan_validation import Validation
from msf_engine.revisions import network_fingerprint

logger = logging.getLogger(__name__)

_RECORD, _FILES = "plan.json", "plan"
_PARTIAL = ".partial-"
_FULL_BYTES = 2**20  # with less free space, it is the disk that made a compiler fail, whatever the compiler says


@dataclass(frozen=True)
class PlanRecord:
    """Metadata of a plan. `validations`, one for each bucket, are empty until it runs."""

    model: str
    plan: str
    backend: str
    precision: str
    fingerprint: str  # the backend's: what it was compiled with and for
    size_bytes: int
    sha256: str
    built_at: str  # ISO 8601
    build_s: float
    validations: tuple[Validation, ...] = ()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse a record. Raises ValueError, TypeError or KeyError for anything else."""
        fields = json.loads(text)
        return cls(**{**fields, "validations": tuple(Validation(**each) for each in fields["validations"])})


class StoredPlan(NamedTuple):
    """A compiled plan's folder of files, and its metadata."""

    folder: Path
    record: PlanRecord


class PlanCache:
    """Compiled plans in a folder, one folder each: `plan/` and `plan.json`. Safe with several processes.

    The key is the SHA-256 of the spec, but for the model's name, and the fingerprints of backend and networks: models
    with the same network share its plan. A plan is written under a temporary name and renamed; its checksum is compared
    when it is read. Beyond `limit_bytes` the least recently read plans are removed.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_PLAN_CACHE_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def has(self, spec: PlanSpec, fingerprint: str) -> bool:
        """Return whether there is an entry for the plan, which may be damaged."""
        return (self._entry(spec, fingerprint) / _RECORD).exists()

    def get(self, spec: PlanSpec, fingerprint: str) -> StoredPlan | None:
        """Return the plan, or None when it is absent or damaged. Removes a damaged one."""
        entry = self._entry(spec, fingerprint)
        try:
            record = PlanRecord.from_json((entry / _RECORD).read_bytes())
            digest = folder_digest(entry / _FILES)
            os.utime(entry)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("cached plan %s cannot be read and is built again: %s", spec, error)
        else:
            if record.sha256 == digest:
                return StoredPlan(entry / _FILES, record)
            logger.warning("cached plan %s is damaged and is built again (%s)", spec, entry)
        self.remove(spec, fingerprint)
        return None

    def put(self, spec: PlanSpec, record: PlanRecord, files: Path) -> StoredPlan:
        """Store a plan in place of any previous one; moves its folder. Raises PlanError as `building` does."""
        entry = self._entry(spec, record.fingerprint)
        try:
            self._write(entry, record, files)
        except OSError as error:
            raise self._not_writable(error) from error
        self._evict(entry)
        return StoredPlan(entry / _FILES, record)

    def update(self, spec: PlanSpec, record: PlanRecord) -> None:
        """Replace a stored plan's metadata. Raises PlanError as `building` does."""
        file = self._entry(spec, record.fingerprint) / _RECORD
        partial = file.with_suffix(".partial")
        try:
            partial.write_text(_to_json(record))
            partial.replace(file)
        except OSError as error:
            raise self._not_writable(error) from error

    def remove(self, spec: PlanSpec, fingerprint: str) -> None:
        shutil.rmtree(self._entry(spec, fingerprint), ignore_errors=True)

    @contextmanager
    def building(self, spec: PlanSpec, fingerprint: str) -> Iterator[Path]:
        """Exclude other processes while one builds the plan, in an empty folder; they can then read it.

        Raises PlanError when the cache is not writable, or its disk is full by the time that the build fails.
        """
        entry = self._entry(spec, fingerprint)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(entry).acquire()
            partial = tempfile.TemporaryDirectory(prefix=_partial(entry), dir=self.folder, ignore_cleanup_errors=True)
        except OSError as error:
            raise self._not_writable(error) from error
        with lock, partial as folder:
            try:
                yield Path(folder)
            except Exception as error:
                if shutil.disk_usage(self.folder).free > _FULL_BYTES:
                    raise
                raise self._not_writable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error

    def remove_abandoned(self) -> None:
        """Remove the folders in which processes made entries that were killed meanwhile."""
        for folder in self.folder.glob(f"{_PARTIAL}*"):
            entry = self.folder / folder.name.removeprefix(_PARTIAL).partition("-")[0]
            with suppress(OSError), _lock(entry).acquire(blocking=False):  # whoever makes an entry holds its lock
                shutil.rmtree(folder, ignore_errors=True)

    def records(self) -> list[PlanRecord]:
        """Return the metadata of every plan in the cache."""
        records = []
        for file in sorted(self.folder.glob(f"*/{_RECORD}")):
            try:
                records.append(PlanRecord.from_json(file.read_bytes()))
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s is not a plan record: %s", file, error)
        return sorted(records, key=lambda record: (record.model, record.backend, record.precision, record.plan))

    def _write(self, entry: Path, record: PlanRecord, files: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=_partial(entry), dir=self.folder, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / "entry"
            partial.mkdir()
            (partial / _RECORD).write_text(_to_json(record))
            files.rename(partial / _FILES)
            if entry.exists():
                entry.rename(Path(folder) / "previous")
            try:
                partial.rename(entry)
            except OSError:
                if not entry.is_dir():  # else another process has written it
                    raise

    def _evict(self, newest: Path) -> None:
        entries = [file.parent for file in self.folder.glob(f"*/{_RECORD}")]
        try:
            sizes = {entry: _size_bytes(entry) for entry in entries}
            oldest_first = sorted(entries, key=lambda entry: entry.stat().st_mtime)
        except FileNotFoundError:
            return  # another process removes plans
        for entry in oldest_first:
            if sum(sizes.values()) <= self.limit_bytes:
                return
            if entry != newest:
                logger.warning("plan cache exceeds %d bytes: removing %s", self.limit_bytes, entry.name)
                shutil.rmtree(entry, ignore_errors=True)
                del sizes[entry]

    def _entry(self, spec: PlanSpec, fingerprint: str) -> Path:
        parts = {name: value for name, value in asdict(spec).items() if name != "model"}
        key = json.dumps({"spec": parts, "backend": fingerprint, "networks": network_fingerprint()}, sort_keys=True)
        return self.folder / hashlib.sha256(key.encode()).hexdigest()

    def _not_writable(self, error: OSError) -> PlanError:
        return PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}")


def _partial(entry: Path) -> str:
    """Return how the names of folders begin in which an entry is made."""
    return f"{_PARTIAL}{entry.name}-"


def _lock(entry: Path) -> FileLock:
    return FileLock(entry.with_suffix(".lock"))


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 of a folder's own files; what a runtime keeps in folders inside it does not count."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file():
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _size_bytes(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())


def _to_json(record: PlanRecord) -> str:
    return json.dumps(asdict(record), indent=2) + "\n"
