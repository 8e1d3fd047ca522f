"""Cache of compiled plans and their validations on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
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
    """A compiled plan and its metadata."""

    artefact: bytes
    record: PlanRecord


class PlanCache:
    """Compiled plans in a folder, one folder each: `plan.bin` and `plan.json`. Safe with several processes.

    The key is the SHA-256 of the spec (with the model's digest) and the fingerprints of backend and networks. A plan is
    written under a temporary name and renamed; its checksum is compared when it is read. Beyond `limit_bytes` the least
    recently read plans are removed.
    """

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_PLAN_CACHE_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def get(self, spec: PlanSpec, fingerprint: str) -> StoredPlan | None:
        """Return the plan, or None when it is absent or damaged. Removes a damaged one."""
        entry = self._entry(spec, fingerprint)
        try:
            record = PlanRecord.from_json((entry / "plan.json").read_bytes())
            artefact = (entry / "plan.bin").read_bytes()
            os.utime(entry)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("cached plan %s cannot be read and is built again: %s", spec, error)
        else:
            if record.sha256 == hashlib.sha256(artefact).hexdigest():
                return StoredPlan(artefact, record)
            logger.warning("cached plan %s is damaged and is built again (%s)", spec, entry)
        self.remove(spec, fingerprint)
        return None

    def put(self, spec: PlanSpec, stored: StoredPlan) -> None:
        """Store a plan in place of any previous one. Raises PlanError when the folder is not writable."""
        entry = self._entry(spec, stored.record.fingerprint)
        try:
            self._write(entry, stored)
        except OSError as error:
            raise PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}") from error
        self._evict(entry)

    def remove(self, spec: PlanSpec, fingerprint: str) -> None:
        shutil.rmtree(self._entry(spec, fingerprint), ignore_errors=True)

    def building(self, spec: PlanSpec, fingerprint: str) -> AbstractContextManager[object]:
        """Exclude other processes while one builds the plan; they can then read it. Raises PlanError as `put` does."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return FileLock(self._entry(spec, fingerprint).with_suffix(".lock")).acquire()
        except OSError as error:
            raise PlanError(f"plan cache {self.folder} cannot be written: {error.strerror}") from error

    def records(self) -> list[PlanRecord]:
        """Return the metadata of every plan in the cache."""
        records = []
        for file in sorted(self.folder.glob("*/plan.json")):
            try:
                records.append(PlanRecord.from_json(file.read_bytes()))
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s is not a plan record: %s", file, error)
        return sorted(records, key=lambda record: (record.model, record.backend, record.precision, record.plan))

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
            shutil.rmtree(partial)  # another process has written it
        shutil.rmtree(entry / "previous", ignore_errors=True)

    def _evict(self, newest: Path) -> None:
        entries = [file.parent for file in self.folder.glob("*/plan.bin")]
        try:
            sizes = {entry: (entry / "plan.bin").stat().st_size for entry in entries}
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
        key = json.dumps(
            {"spec": asdict(spec), "backend": fingerprint, "networks": network_fingerprint()}, sort_keys=True
        )
        return self.folder / hashlib.sha256(key.encode()).hexdigest()
