"""Finished figures, kept line by line in a file: an evaluation that is run again does not repeat them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.evaluation.comparison import Figures


class Journal:
    """Figures by phase and name. Lines of another `context` (model, networks, seed) stay but do not count."""

    def __init__(self, path: Path, context: dict[str, str | int]) -> None:
        self.path = path
        self.context = context
        self._text = path.read_text() if path.exists() else ""

    def find(self, phase: str, name: str, num_images: int) -> Figures | None:
        wanted = self._key(phase, name, num_images)
        for line in reversed(self._text.splitlines()):
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut short when the process was killed
            if entry["key"] == wanted:
                return Figures(**entry["figures"])
        return None

    def add(self, phase: str, figures: Figures) -> None:
        key = self._key(phase, figures.name, figures.num_images)
        line = json.dumps({"key": key, "figures": asdict(figures)}) + "\n"
        if self._text and not self._text.endswith("\n"):
            line = "\n" + line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(line)
        self._text += line

    def _key(self, phase: str, name: str, num_images: int) -> dict[str, str | int]:
        return {**self.context, "phase": phase, "name": name, "num_images": num_images}
