from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from msf_serve.engine.backends import get_backend
from msf_serve.engine.errors import BackendUnavailable
from msf_serve.engine.loading import probes_of
from msf_serve.engine.plans import PlanSpec, step_inputs
from msf_serve.engine.repository import ModelVersion
from msf_serve.engine.stage import Stage
from msf_serve.engine.step import StepModule
from msf_serve.engine.trials import Reference


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_agrees_with_eager(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    stage = Stage.BASE
    module = StepModule(version.load().denoiser(stage), guided=True).eval()
    probes = probes_of(version.config, {stage: version.load_time_embedding(stage)}, stage)
    spec = PlanSpec("tiny:1", "", stage, True, (3,), step_inputs(version.config.stage(stage).denoiser))
    plan = get_backend("inductor", "fp32", 1).load(spec, b"", lambda: module)
    assert Reference.of(stage, module, probes).error(plan(*probes.rows([0, 1, 2])), [0, 1, 2]) < 1e-5
    assert any(tmp_path.iterdir()), "it was compiled"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailable, match="needs a C\\+\\+ compiler on a CPU: apt install g\\+\\+"):
        get_backend("inductor", None, 1)
