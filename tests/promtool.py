"""Prometheus's own checks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


class Promtool:
    """Runs `promtool` and fails the test unless it is content."""

    def __init__(self) -> None:
        path = shutil.which("promtool")
        if path is None:
            pytest.skip("promtool is not on PATH (Debian's package prometheus has it)")
        self._path = path

    def __call__(self, *arguments: str | Path, stdin: str = "") -> None:
        done = subprocess.run((self._path, *arguments), input=stdin, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert stdin == "" or said == "", said  # of metrics it also tells what is only bad style
