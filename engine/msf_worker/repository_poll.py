"""Polling of the model repository: which versions are new, or have changed since they could not be loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msf_scheduler.jobs import ModelKey

Signature = frozenset[tuple[str, int, int]]  # name, size and time of change of each file


@dataclass
class RepositoryPoll:
    """Offers a version once its files have not changed between two looks, and again after they have changed."""

    repository: Path
    _signatures: dict[ModelKey, Signature] = field(default_factory=dict)
    _settled: set[ModelKey] = field(default_factory=set)
    _tried: dict[ModelKey, Signature] = field(default_factory=dict)

    def look(self, versions: Iterable[ModelKey]) -> None:
        """Read the signatures of `versions`; it may take long."""
        signatures = {key: self._signature(*key) for key in versions}
        self._settled = {key for key, signature in signatures.items() if self._signatures.get(key) == signature}
        self._signatures = signatures

    def is_new(self, key: ModelKey) -> bool:
        """Return whether a version is complete as far as can be seen, and not what was tried."""
        return key in self._settled and self._tried.get(key) != self._signatures[key]

    def mark_tried(self, versions: Iterable[ModelKey]) -> None:
        """Offer these versions no more as they are."""
        self._tried |= {key: self._signatures[key] for key in versions if key in self._signatures}

    def _signature(self, name: str, version: str) -> Signature:
        model = self.repository / name
        try:
            with os.scandir(model) as shared, os.scandir(model / version) as own:
                files = [entry for entry in (*shared, *own) if entry.is_file()]
                statuses = [(entry.name, entry.stat()) for entry in files]
        except OSError:
            return frozenset()
        return frozenset((file, status.st_size, status.st_mtime_ns) for file, status in statuses)
