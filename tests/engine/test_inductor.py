from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from msf_engine.backends import get_backend
from msf_engine.errors import BackendUnavailable
from msf_engine.guided_step import StepModule
from msf_engine.plan import PlanSpec, step_inputs
from msf_engine.plan_validation import STEP_TOLERANCE, EagerReference, validation_inputs
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_agrees_with_eager(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    stage = Stage.BASE
    module = StepModule(version.load().denoiser(stage), guided=True).eval()
    inputs = validation_inputs(version.config, {stage: version.load_time_embedding(stage)}, stage)
    spec = PlanSpec("tiny:1", "", stage, True, (3,), step_inputs(version.config.stage(stage).denoiser))
    plan = get_backend("inductor", "bf16", 1).load(spec, b"", lambda: module)
    error = EagerReference.of(stage, module, inputs).error(plan(*inputs.rows([0, 1, 2])), [0, 1, 2])
    assert 0 < error < STEP_TOLERANCE["bf16"]
    assert any(tmp_path.iterdir()), "nothing was compiled"


@pytest.mark.slow
def test_a_model_may_have_more_plans_than_torch_compiles_by_default(
    version: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # quick; the limit is dynamo's
    module = StepModule(version.load().denoiser(Stage.BASE), guided=False).eval()
    backend = get_backend("inductor", "fp32", 1)
    for bucket in range(1, 11):
        inputs = step_inputs(version.config.base.denoiser)
        spec = PlanSpec("tiny:1", "", Stage.BASE, False, (bucket,), inputs)
        d, _ = backend.load(spec, b"", lambda: module)(*spec.example(bucket))
        assert len(d) == bucket


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailable, match="needs a C\\+\\+ compiler on a CPU: apt install g\\+\\+"):
        get_backend("inductor", None, 1)
