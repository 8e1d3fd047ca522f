from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch

from msf_serve.engine.backends import Backend, get_backend
from msf_serve.engine.config import Stage
from msf_serve.engine.errors import BackendUnavailable, PlanError
from msf_serve.engine.executor import Executor, SampleRequest
from msf_serve.engine.loading import ModelPlans, load_plans
from msf_serve.engine.offline import generate
from msf_serve.engine.plans import PlanCache, PlanSpec, step_spec
from msf_serve.engine.repository import ModelVersion

REQUESTS = [
    SampleRequest(label, seed, 0, 4, 2, scale) for label, seed, scale in ((0, 1, 1.5), (1, 2, 1.0), (2, 3, 3.0))
]


@pytest.fixture(scope="module")
def openvino() -> Backend:
    return get_backend("openvino", "fp32", 1)


@pytest.fixture(scope="module")
def plan_folder(version: ModelVersion, openvino: Backend, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the tiny model's plans at bucket 2."""
    folder = tmp_path_factory.mktemp("openvino")
    load_plans(version, openvino, PlanCache(folder), (2,))
    return folder


def _no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ModelVersion) -> None:
        pytest.fail("a cached plan needs no weights")

    monkeypatch.setattr(ModelVersion, "load", refuse)


def test_openvino_agrees_with_eager(
    version: ModelVersion, openvino: Backend, plan_folder: Path, eager_plans: ModelPlans
) -> None:
    compiled = load_plans(version, openvino, PlanCache(plan_folder), (2,))
    for one, other in zip(
        generate(Executor(compiled, 2), REQUESTS), generate(Executor(eager_plans, 2), REQUESTS), strict=True
    ):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_cached_plans_need_neither_weights_nor_compiler(
    version: ModelVersion, openvino: Backend, plan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _no_source(monkeypatch)
    plans = load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert len(generate(Executor(plans, 2), REQUESTS)) == 3


def test_a_damaged_plan_is_built_again(
    version: ModelVersion, openvino: Backend, plan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = min(plan_folder.iterdir())
    good = (entry / "plan.bin").read_bytes()
    (entry / "plan.bin").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert "is damaged and is built again" in caplog.text
    description = json.loads((entry / "plan.json").read_text())
    assert description["size_bytes"] == (entry / "plan.bin").stat().st_size


Change = Callable[[PlanSpec, str], tuple[PlanSpec, str]]


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, fingerprint: (replace(spec, bucket=4), fingerprint),
        lambda spec, fingerprint: (replace(spec, guided=False), fingerprint),
        lambda spec, fingerprint: (replace(spec, stage=Stage.RESIDUAL), fingerprint),
        lambda spec, fingerprint: (replace(spec, model_digest="other weights"), fingerprint),
        lambda spec, fingerprint: (spec, "another CPU"),
    ],
)
def test_a_plan_is_found_only_for_what_it_was_built_for(version: ModelVersion, tmp_path: Path, change: Change) -> None:
    cache = PlanCache(tmp_path)
    spec = step_spec(version.config, version.digest, Stage.BASE, guided=True, bucket=2)
    cache.put(spec, "this CPU", b"plan")
    assert cache.get(spec, "this CPU") == b"plan"
    assert cache.get(*change(spec, "this CPU")) is None


def test_the_first_of_two_writers_wins_and_nothing_is_left_over(version: ModelVersion, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    spec = step_spec(version.config, version.digest, Stage.BASE, guided=True, bucket=2)
    cache.put(spec, "this CPU", b"first")
    cache.put(spec, "this CPU", b"second")
    assert cache.get(spec, "this CPU") == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named(version: ModelVersion, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = step_spec(version.config, version.digest, Stage.BASE, guided=True, bucket=2)
    with pytest.raises(PlanError, match=r"plan cache .*file cannot be written"):
        PlanCache(tmp_path / "file").put(spec, "this CPU", b"plan")


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="backend 'nope' is unknown; allowed: eager, openvino"):
        get_backend("nope", None, 1)


def test_bf16_is_refused_where_the_cpu_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCpu:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(ov, "Core", OldCpu)
    with pytest.raises(BackendUnavailable, match="bf16 is not native on this CPU; allowed: fp32"):
        get_backend("openvino", "bf16", 1)


def test_eager_runs_in_bf16_too(version: ModelVersion, eager_plans: ModelPlans, tmp_path: Path) -> None:
    low = load_plans(version, get_backend("eager", "bf16", 1), PlanCache(tmp_path), (4,))
    spec = step_spec(version.config, version.digest, Stage.BASE, guided=True, bucket=4)
    inputs = [torch.rand_like(t) if t.is_floating_point() else t for t in spec.example(4)]
    exact, _ = eager_plans.steps[Stage.BASE, True, 4](*inputs)
    rough, _ = low.steps[Stage.BASE, True, 4](*inputs)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rough.float(), exact)
