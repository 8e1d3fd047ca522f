"""The import contracts in pyproject.toml catch every import that docs/architecture.md rules out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("server", "engine", "bench")
VIOLATIONS = (
    ("msf_engine.noise", "redis"),
    ("msf_engine.noise", "msf_scheduler.keys"),
    ("msf_engine.noise", "msf_training.recipe"),
    ("msf_training.recipe", "fastapi"),
    ("msf_training.recipe", "msf_server.settings"),
    ("msf_scheduler.keys", "torch"),
    ("msf_scheduler.keys", "msf_engine.noise"),
    ("msf_scheduler.keys", "msf_server.settings"),
    ("msf_worker.settings", "msf_server.settings"),
    ("msf_worker.settings", "msf_cli.settings"),
    ("msf_server.settings", "msf_engine.noise"),
    ("msf_server.settings", "openvino"),
    ("msf_server.settings", "msf_cli.main"),
    ("msf_cli.load.arrivals", "msf_scheduler.keys"),
    ("msf_cli.load.arrivals", "starlette"),
    ("msf_cli.simulation.cluster", "redis"),
    ("msf_cli.simulation.cluster", "msf_engine.noise"),
    ("msf_engine.noise", "bench.local_stack"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Output of `lint-imports` for a copy of the code with all the violations planted in it."""
    copy = tmp_path_factory.mktemp("planted")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for source in SOURCES:
        shutil.copytree(ROOT / source, copy / source, ignore=shutil.ignore_patterns("__pycache__"))
    for importer, imported in VIOLATIONS:
        path = Path(*importer.split("."))
        file = next(copy / root / path.with_suffix(".py") for root in SOURCES if (copy / root / path.parts[0]).exists())
        with file.open("a") as source_file:
            source_file.write(f"\nimport {imported}\n")
    command = Path(sys.executable).with_name("lint-imports")
    python_path = os.pathsep.join([str(copy / "server"), str(copy / "engine"), str(copy)])
    environment = {**os.environ, "PYTHONPATH": python_path, "COLUMNS": "200"}
    checked = subprocess.run(
        [command, "--no-cache"], cwd=copy, env=environment, check=False, capture_output=True, text=True
    )
    assert checked.returncode == 1, checked.stdout + checked.stderr
    return checked.stdout


@pytest.mark.parametrize(("importer", "imported"), VIOLATIONS)
def test_a_forbidden_import_is_reported(report: str, importer: str, imported: str) -> None:
    assert re.search(rf"^- +{re.escape(importer)} -> {re.escape(imported)} \(l\.", report, re.MULTILINE), report
