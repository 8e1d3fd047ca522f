from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from msf_engine.guided_step import StepModule
from torch import nn

from msf_engine import plan_loader
from msf_engine.backends import Backend, BackendName, Precision, eager, get_backend, inductor
from msf_engine.backends.eager import EagerBackend
from msf_engine.errors import BackendUnavailable, PlanError, PlanRejected
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Plan, PlanSpec, step_inputs
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import compile_plans, load_models, load_plans
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import Stage

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


def _forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ModelVersion) -> None:
        pytest.fail("a cached plan needs no weights")

    monkeypatch.setattr(ModelVersion, "load", refuse)


def test_openvino_agrees_with_eager(
    version: ModelVersion, openvino: Backend, plan_folder: Path, eager_plans: ModelPlans
) -> None:
    compiled = load_plans(version, openvino, PlanCache(plan_folder), (2,))
    for one, other in zip(generate(compiled, REQUESTS), generate(eager_plans, REQUESTS), strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_cached_plans_need_neither_weights_nor_compiler(
    version: ModelVersion, openvino: Backend, plan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_loading(monkeypatch)
    plans = load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert len(generate(plans, REQUESTS)) == 3


def test_a_damaged_plan_is_built_again(
    version: ModelVersion, openvino: Backend, plan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = min(plan_folder.glob("*/plan.bin")).parent
    good = (entry / "plan.bin").read_bytes()
    (entry / "plan.bin").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert "is damaged and is built again" in caplog.text
    record = json.loads((entry / "plan.json").read_text())
    assert record["sha256"] == hashlib.sha256((entry / "plan.bin").read_bytes()).hexdigest()


def test_a_plan_whose_outputs_differ_from_its_validation_is_built_again(
    version: ModelVersion, openvino: Backend, plan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = min(plan_folder.glob("*/plan.json"))
    record = json.loads(entry.read_text())
    record["validations"][0]["output_digest"] = "0" * 64
    entry.write_text(json.dumps(record))
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert "is built again: its outputs are not those of its validation" in caplog.text


class WrongBackend(EagerBackend):
    """Backend whose plans are 1 % off."""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, artefact, source)
        return lambda *inputs: tuple(output * 1.01 for output in plan(*inputs))


def test_a_plan_that_disagrees_with_the_reference_is_rejected(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match=r"plan base guided x2 of tiny:1 is rejected: .* error .* is 0.01; allowed"):
        load_plans(version, WrongBackend("fp32", 1), PlanCache(tmp_path), (2,))
    assert list(tmp_path.glob("*/plan.bin")) == []


class FailingBackend(EagerBackend):
    """Backend whose plans fail when they run."""

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            raise RuntimeError("no kernel")

        return run


def test_a_plan_that_cannot_run_is_rejected(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="it fails to run: no kernel"):
        load_plans(version, FailingBackend("fp32", 1), PlanCache(tmp_path), (2,))


def test_the_next_backend_serves_if_the_first_is_rejected(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan_loader, "default_backends", lambda: ("inductor", "eager"))
    monkeypatch.setattr(inductor, "BACKEND", WrongBackend)
    backend, _ = load_models([version], None, None, 1, PlanCache(tmp_path), (1,))
    assert type(backend) is EagerBackend
    assert "backend inductor cannot serve on this machine: plan base guided x1" in caplog.text


def test_a_named_backend_has_no_fallback(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "BACKEND", WrongBackend)
    with pytest.raises(PlanRejected):
        load_models([version], "eager", None, 1, PlanCache(tmp_path), (1,))


class AbsentBackend(EagerBackend):
    """Backend for a device that this machine does not have."""

    runs_here = False

    def load(self, spec: PlanSpec, artefact: bytes, source: Callable[[], nn.Module]) -> Plan:
        raise PlanError("no such device")


def test_a_plan_that_cannot_run_here_is_validated_where_it_can(version: ModelVersion, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    compile_plans(version, AbsentBackend("fp32", 1), cache, (2,))
    assert [record.validations for record in cache.records()] == [()] * 5
    load_plans(version, EagerBackend("fp32", 1), cache, (2,))
    assert all(record.validations[0].is_accepted for record in cache.records())


def test_the_fingerprint_depends_on_every_plan(version: ModelVersion, tmp_path: Path) -> None:
    def fingerprint(precision: Precision, buckets: tuple[int, ...]) -> str:
        return load_plans(version, EagerBackend(precision, 1), PlanCache(tmp_path), buckets).fingerprint

    assert fingerprint("fp32", (1, 2)) == fingerprint("fp32", (1, 2))
    assert len({fingerprint("fp32", (1, 2)), fingerprint("fp32", (1,)), fingerprint("bf16", (1, 2))}) == 3


@pytest.mark.parametrize(
    ("name", "option"),
    [("openvino", "NUM_STREAMS=1"), ("inductor", "dynamic=False")],
)
def test_a_backends_fingerprint_lists_its_options(name: BackendName, option: str) -> None:
    assert f" {option} " in f"{get_backend(name, 'fp32', 1).fingerprint} "


def test_openvino_reports_no_usage() -> None:
    """OpenVINO's converter has telemetry, which is on by default."""
    script = "import sys, msf_engine.backends.openvino, openvino.tools.ovc; print(sys.modules['openvino_telemetry'])"
    process = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "None"


def test_an_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="backend 'nope' is unknown; allowed: eager, inductor, openvino"):
        get_backend("nope", None, 1)  # type: ignore[arg-type]


def test_bf16_is_an_error_on_a_cpu_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldCpu:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(ov, "Core", OldCpu)
    with pytest.raises(
        BackendUnavailable, match="backend openvino has no precision bf16 on this machine; allowed: fp32"
    ):
        get_backend("openvino", "bf16", 1)


def test_eager_bf16_agrees_with_float32_roughly(version: ModelVersion, eager_plans: ModelPlans, tmp_path: Path) -> None:
    low = load_plans(version, get_backend("eager", "bf16", 1), PlanCache(tmp_path), (4,))
    spec = PlanSpec("tiny:1", "", Stage.BASE, True, (4,), step_inputs(version.config.base.denoiser))
    inputs = [torch.rand_like(t) if t.is_floating_point() else t for t in spec.example(4)]
    exact, _ = eager_plans.by_kind[Stage.BASE, True][4](*inputs)
    rough, _ = low.by_kind[Stage.BASE, True][4](*inputs)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rough.float(), exact)


def test_weights_that_are_cast_once_compute_what_autocast_does(version: ModelVersion) -> None:
    inputs = step_inputs(version.config.residual.denoiser)
    spec = PlanSpec("tiny:1", "", Stage.RESIDUAL, True, (2,), inputs)
    example = [torch.rand_like(t) if t.is_floating_point() else t for t in spec.example(2)]
    module = StepModule(version.load().residual, guided=True).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = module(*example)
    outputs = get_backend("eager", "bf16", 1).load(spec, b"", lambda: module)(*example)
    assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
    assert next(module.parameters()).dtype == torch.float32, "the original module is unchanged"
