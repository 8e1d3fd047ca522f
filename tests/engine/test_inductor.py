from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from msf_engine.backends import get_backend
from msf_engine.errors import BackendUnavailable
from msf_engine.plan import run
from msf_engine.plan_validation import STEP_TOLERANCE, EagerReference
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage
from tests.engine.support import inputs_of, network_of, spec_of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_compiled_step_agrees_with_eager(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    stage, model = Stage.BASE, version.load()
    network, spec = network_of(model, stage), spec_of(model, stage, 3)
    inputs = inputs_of(version, stage)
    plan = get_backend("inductor", "bf16", 1).load(spec, tmp_path, lambda: network)
    error = EagerReference.of(stage, network, inputs).error(run(plan, inputs.rows([0, 1, 2])), [0, 1, 2])
    assert 0 < error < STEP_TOLERANCE["bf16"]
    assert any(tmp_path.iterdir()), "nothing was compiled"


@pytest.mark.slow
def test_a_plan_may_have_more_buckets_than_torch_compiles_by_default(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # quick; the limit is dynamo's
    model, buckets = version.load(), tuple(range(1, 11))
    spec = spec_of(model, Stage.BASE, *buckets)
    plan = get_backend("inductor", "fp32", 1).load(spec, tmp_path, lambda: network_of(model, Stage.BASE))
    for bucket in buckets:
        assert len(run(plan, spec.zeros(bucket))) == bucket


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendUnavailable, match="needs a C\\+\\+ compiler on a CPU: apt install g\\+\\+"):
        get_backend("inductor", None, 1)
