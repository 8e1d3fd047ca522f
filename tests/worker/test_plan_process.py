"""Process that builds plans: its death is the failure of one version."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from msf_engine.errors import PlanError
from msf_engine.repository import ModelVersion
from msf_worker.plan_process import build_plans
from msf_worker.settings import WorkerSettings


def test_a_killed_process_is_reported_with_its_status(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nread settings\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    settings = WorkerSettings(model_repo=tmp_path, cache_dir=tmp_path)
    with pytest.raises(PlanError, match=r"ended with status -9 \(-9: killed, as without memory\)"):
        build_plans(settings, version)
