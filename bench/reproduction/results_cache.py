"""Figures kept line by line in a file, so that a comparison that is run again does not repeat them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from bench.evaluation.comparison import Quality

logger = logging.getLogger(__name__)


class ResultsCache:
    """Figures by phase and name. Lines of another `context` (networks, sizes) stay in the file but do not count."""

    def __init__(self, path: Path, context: Mapping[str, str]) -> None:
        self.path = path
        self.context = context
        self._text = path.read_text() if path.exists() else ""

    def get(self, phase: str, name: str, num_images: int, measure: Callable[[], Quality]) -> Quality:
        """Return the figures, measured and kept if they are not there."""
        key: dict[str, str | int] = {**self.context, "phase": phase, "name": name, "num_images": num_images}
        quality = self._find(key)
        if quality is None:
            quality = measure()
            self._append(json.dumps({"key": key, "figures": asdict(quality)}) + "\n")
        logger.info("%s: %s, accuracy %.3f, FID %s", phase, name, quality.top_1, dict(quality.fid))
        return quality

    def _append(self, line: str) -> None:
        if self._text and not self._text.endswith("\n"):
            line = "\n" + line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line)
        self._text += line

    def _find(self, key: Mapping[str, str | int]) -> Quality | None:
        for line in reversed(self._text.splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short when the process was killed
            if entry["key"] == key:
                return Quality(**entry["figures"])
        return None
