"""The cache that keeps plans between starts, and what is known of each."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple, Self

from filelock import FileLock

from msf_engine.errors import PlanError
from msf_engine.options import DEFAULT_PLAN_CACHE_BYTES
from msf_engine.plan import PlanSpec
from msf_engine.plan_validation import Trial

logger = logging.getLogger(__name__)

_COMPILED_FROM = (
    "autoencoder.py",
    "denoiser.py",
    "export.py",
    "factorization.py",
    "model.py",
    "precision.py",
    "guided_step.py",
)


@dataclass(frozen=True)
class PlanRecord:
    """What is told of a plan. `trials`, one for each bucket, are empty until it ran."""

    model: str
    plan: str
    backend: str
    precision: str
    fingerprint: str  # the backend's: what it was compiled with and for
    size_bytes: int
    sha256: str
    built_at: str  # ISO 8601
    build_s: float
    trials: tuple[Trial, ...] = ()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Raises ValueError, TypeError or KeyError for anything else than a record."""
        fields = json.loads(text)
        return cls(**{**fields, "trials": tuple(Trial(**trial) for trial in fields["trials"])})


class StoredPlan(NamedTuple):
    artefact: bytes
    record: PlanRecord


class PlanCache:
    """Compiled plans in a folder, one folder each: `plan.bin` and `plan.json`. Safe with several processes.

    The key hashes the spec (the model's digest is in it), the backend's fingerprint and the source of the networks. A
    plan is written under a temporary name and renamed; its checksum is compared when it is read. Beyond `limit_bytes`
    the plans that were read longest ago are removed.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_PLAN_CACHE_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def get(self, spec: PlanSpec, fingerprint: str) -> StoredPlan | None:
        """The plan, or None when it is absent or damaged (a damaged one is removed)."""
        entry = self._entry(spec, fingerprint)
        try:
            record = PlanRecord.from_json((entry / "plan.json").read_bytes())
            artefact = (entry / "plan.bin").read_bytes()
            os.utime(entry)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("cached plan %s is unreadable and is built again: %s", spec, error)
        else:
            if record.sha256 == hashlib.sha256(artefact).hexdigest():
                return StoredPlan(artefact, record)
            logger.warning("cached plan %s is damaged and is built again (%s)", spec, entry)
        self.remove(spec, fingerprint)
        return None

    def put(self, spec: PlanSpec, stored: StoredPlan) -> None:
        """Keep a plan, instead of any before it. Raises PlanError where nothing can be written."""
        entry = self._entry(spec, stored.record.fingerprint)
        try:
            self._write(entry, stored)
        except OSError as error:
            raise PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}") from error
        self._make_room(entry)

    def remove(self, spec: PlanSpec, fingerprint: str) -> None:
        shutil.rmtree(self._entry(spec, fingerprint), ignore_errors=True)

    @contextmanager
    def building(self, spec: PlanSpec, fingerprint: str) -> Iterator[None]:
        """While one process is inside, others wait: what it builds they can read."""
        entry = self._entry(spec, fingerprint)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(entry.with_suffix(".lock"))
            lock.acquire()
        except OSError as error:
            raise PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()

    def records(self) -> list[PlanRecord]:
        """What is told of every plan in the cache."""
        found = []
        for file in sorted(self.folder.glob("*/plan.json")):
            try:
                found.append(PlanRecord.from_json(file.read_bytes()))
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s is no plan's record: %s", file, error)
        return sorted(found, key=lambda record: (record.model, record.backend, record.precision, record.plan))

    def _write(self, entry: Path, stored: StoredPlan) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self.folder))
        (partial / "plan.bin").write_bytes(stored.artefact)
        (partial / "plan.json").write_text(json.dumps(asdict(stored.record), indent=2) + "\n")
        if entry.exists():
            os.rename(entry, partial / "previous")
        try:
            os.rename(partial, entry)
        except OSError:
            if not entry.is_dir():
                raise
            shutil.rmtree(partial)  # another process was faster
        shutil.rmtree(entry / "previous", ignore_errors=True)

    def _make_room(self, newest: Path) -> None:
        entries = [file.parent for file in self.folder.glob("*/plan.bin")]
        try:
            sizes = {entry: (entry / "plan.bin").stat().st_size for entry in entries}
            oldest_first = sorted(entries, key=lambda entry: entry.stat().st_mtime)
        except FileNotFoundError:
            return  # another process makes room
        for entry in oldest_first:
            if sum(sizes.values()) <= self.limit_bytes:
                return
            if entry != newest:
                logger.warning("plan cache is larger than %d bytes: removing %s", self.limit_bytes, entry.name)
                shutil.rmtree(entry, ignore_errors=True)
                del sizes[entry]

    def _entry(self, spec: PlanSpec, fingerprint: str) -> Path:
        backend = fingerprint.partition(" ")[0]
        source = source_digest((*_COMPILED_FROM, f"backends/{backend}.py"))
        key = json.dumps({"spec": asdict(spec), "fingerprint": fingerprint, "source": source}, sort_keys=True)
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


@cache
def source_digest(names: tuple[str, ...]) -> str:
    """SHA-256 of files of the engine: what the code makes after a change is something else."""
    package = resources.files("msf_engine")
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in names)).hexdigest()
