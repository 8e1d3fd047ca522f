from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from msf_serve.engine.backends import get_backend
from msf_serve.engine.errors import BackendUnavailable
from msf_serve.engine.loading import load_plans
from msf_serve.engine.plan_cache import PlanCache
from msf_serve.engine.repository import ModelVersion


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductors_plans_are_accepted(version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    cache = PlanCache(tmp_path)
    load_plans(version, get_backend("inductor", "fp32", 1), cache, (2,))
    assert [record.backend for record in cache.records()] == ["inductor"] * 5
    assert all(record.trials[0].is_accepted for record in cache.records())


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailable, match="needs a C\\+\\+ compiler on a CPU: apt install g\\+\\+"):
        get_backend("inductor", None, 1)
