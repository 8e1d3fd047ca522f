from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from torch import nn

from msf_engine import plan_loader
from msf_engine.backends import Backend, BackendName, Precision, eager, get_backend, inductor
from msf_engine.backends.eager import EagerBackend
from msf_engine.errors import BackendUnavailable, PlanError, PlanRejected
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.model_plans import ModelPlans
from msf_engine.plan import Array, FunctionPlan, Plan, PlanSpec, run, stage_inputs
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import compile_plans, load_plans, load_version
from msf_engine.repository import ModelVersion, read_version, save_version
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.engine.support import by_row
from tests.models import LABELS, tiny_model, tiny_repository

MODEL_REPO = Path(__file__).parents[2] / "model_repo"
REQUESTS = [
    SampleRequest(label, seed, 0, (4, 2), scale) for label, seed, scale in ((0, 1, 1.5), (1, 2, 1.0), (2, 3, 3.0))
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


def test_cached_plans_need_no_torch(version: ModelVersion, openvino: Backend, plan_folder: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None  # an import of them is an error
from pathlib import Path
from msf_engine.backends import get_backend
from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import generate
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import read_version
version = read_version(Path({str(version.folder.parent.parent)!r}), "tiny")
plans = load_plans(version, get_backend("openvino", "fp32", 1), PlanCache(Path({str(plan_folder)!r})), (2,))
request = SampleRequest(0, 1, 0, (2, 1), 2.0)
executor = Executor(plans, 1)
slots = executor.join([request])
for _ in range(3):
    executor.step(slots)
executor.preview(slots)
[image] = executor.step(slots).images.values()
assert (image == generate(plans, [request])[0]).all()
print(plans.num_loaded, plans.num_built, image.shape)
"""
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    process = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=False)
    assert process.stdout == "3 0 (16, 16, 1)\n", process.stderr


def test_identical_weights_share_the_plans_whatever_the_model_is_called(
    version: ModelVersion, openvino: Backend, plan_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PlanCache(plan_folder)
    first = load_plans(version, openvino, cache, (2,))
    _forbid_loading(monkeypatch)
    for name, number in (("tiny", "2"), ("other", "1")):
        plans = load_plans(tiny_repository(tmp_path, name, number), openvino, cache, (2,))
        assert (plans.num_loaded, plans.num_built) == (3, 0)
        assert all(map(np.array_equal, generate(plans, REQUESTS), generate(first, REQUESTS)))
    assert len(cache.records()) == 3


def test_changed_weights_build_their_own_plan_alone(repository: Path, tmp_path: Path) -> None:
    backend, cache = EagerBackend("fp32", 1), PlanCache(tmp_path / "plans")
    load_plans(read_version(repository, "tiny"), backend, cache, (2,))
    model = tiny_model()
    model.denoiser(Stage.BASE).out.bias.data.add_(1)
    save_version(repository, "tiny", "2", model, LABELS)
    plans = load_plans(read_version(repository, "tiny"), backend, cache, (2,))
    assert (plans.num_loaded, plans.num_built) == (2, 1)
    assert sorted(record.plan for record in cache.records()) == ["base", "base", "decode", "residual"]


@pytest.mark.slow
def test_plans_are_hardly_larger_than_the_weights(tmp_path: Path) -> None:
    """One graph serves all buckets, with the weights in bfloat16; OpenVINO's own cache has none."""
    version = read_version(MODEL_REPO, "fashion-mnist")
    plans = load_plans(version, get_backend("openvino", None, 1), PlanCache(tmp_path), (1, 8))
    assert plans.num_built == 3
    weights_bytes = 2 * sum(weight.numel() for weight in version.load().state_dict().values())
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 1.1 * weights_bytes


def test_a_damaged_plan_is_built_again(
    version: ModelVersion, openvino: Backend, plan_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = min(plan_folder.glob("*/plan/network.bin"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert "is damaged and is built again" in caplog.text
    assert weights.read_bytes() == good
    caplog.clear()
    load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert "built again" not in caplog.text


@pytest.mark.parametrize("damage", [lambda content: b"no blob", lambda content: content[: len(content) // 2]])
def test_openvinos_own_cache_is_mended(
    version: ModelVersion,
    openvino: Backend,
    plan_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
) -> None:
    expected = generate(load_plans(version, openvino, PlanCache(plan_folder), (2,)), REQUESTS)
    blobs = list(plan_folder.glob("*/plan/compiled/*"))
    assert len(blobs) == 3
    for blob in blobs:
        blob.write_bytes(damage(blob.read_bytes()))
    _forbid_loading(monkeypatch)
    plans = load_plans(version, openvino, PlanCache(plan_folder), (2,))
    assert (plans.num_loaded, plans.num_built) == (3, 0)
    assert all(map(np.array_equal, generate(plans, REQUESTS), expected))


def test_a_plan_whose_output_differs_from_its_validation_is_built_again(
    version: ModelVersion, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend, cache = EagerBackend("fp32", 1), PlanCache(tmp_path)
    load_plans(version, backend, cache, (2,))
    entry = min(tmp_path.glob("*/plan.json"))
    record = json.loads(entry.read_text())
    record["validations"][0]["output_digest"] = "0" * 64
    entry.write_text(json.dumps(record))
    plans = load_plans(version, backend, cache, (2,))
    assert (plans.num_loaded, plans.num_built) == (2, 1)
    assert "is built again: its output is not that of its validation" in caplog.text


class WrongBackend(EagerBackend):
    """Backend whose plans are 1 % off."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, folder, source)
        return FunctionPlan(spec, lambda *inputs: run(plan, inputs) * np.float32(1.01))


def test_a_plan_that_disagrees_with_the_reference_is_rejected(version: ModelVersion, tmp_path: Path) -> None:
    message = r"plan base of tiny:1 is rejected: at bucket 2 its error against eager float32 is 0.01; allowed: 0.002"
    with pytest.raises(PlanRejected, match=message):
        load_plans(version, WrongBackend("fp32", 1), PlanCache(tmp_path), (2,))
    assert list(tmp_path.glob("*/plan.json")) == []


class FailingBackend(EagerBackend):
    """Backend whose plans fail when they run."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        def fail(*inputs: Array) -> Array:
            raise RuntimeError("no kernel")

        return FunctionPlan(spec, fail)


def test_a_plan_that_cannot_run_is_rejected(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(PlanRejected, match="it fails to run: no kernel"):
        load_plans(version, FailingBackend("fp32", 1), PlanCache(tmp_path), (2,))


class NeighbourBackend(EagerBackend):
    """Backend whose rows differ in their last bits with the batch."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, folder, source)

        def compute(*inputs: Array) -> Array:
            output = run(plan, inputs)
            leak = 1e-6 * np.nan_to_num(output[:1])
            return np.asarray(output + leak.astype(np.float32))

        return FunctionPlan(spec, compute)


def test_a_stage_whose_rows_depend_on_their_neighbours_has_no_strict_bucket(
    version: ModelVersion, tmp_path: Path
) -> None:
    plans = load_plans(version, NeighbourBackend("fp32", 1), PlanCache(tmp_path), (2, 4))
    assert set(plans.strict.values()) == {()}  # also the decoder's, though its pixels round to the same bytes
    assert len(generate(plans, REQUESTS)) == 3
    with pytest.raises(PlanError, match="no strict images"):
        generate(plans, REQUESTS, strict=True)


def test_each_stage_has_its_buckets(version: ModelVersion, tmp_path: Path) -> None:
    """Guided samples take two rows of a denoiser, and one of the decoder, whose single image fills a device."""
    cache = PlanCache(tmp_path)
    plans = load_plans(version, get_backend("noop", None, 1), cache, (16, 4, 2))
    assert plans.buckets == {Stage.BASE: (2, 4, 16), Stage.RESIDUAL: (2, 4, 16), Stage.DECODE: (2, 4)}
    assert set(plans.seconds) == {(stage, bucket) for stage in TWO_STAGES for bucket in plans.buckets[stage]}
    large = load_plans(version, get_backend("noop", None, 1), cache, (16, 32))
    assert large.buckets[Stage.DECODE] == (16,)
    backend = get_backend("noop", None, 1)
    assert load_plans(version, backend, cache).buckets[Stage.BASE] == backend.buckets


def test_the_next_backend_serves_if_the_first_is_rejected(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan_loader, "default_backends", lambda: ("inductor", "eager"))
    monkeypatch.setattr(inductor, "BACKEND", WrongBackend)
    backend, _ = load_version(version, None, None, 1, PlanCache(tmp_path), (2,))
    assert backend.name == "eager"
    assert not isinstance(backend, WrongBackend)
    assert "backend inductor cannot serve tiny:1 on this machine: plan base of tiny:1 is rejected" in caplog.text


def test_a_named_backend_has_no_fallback(
    version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "BACKEND", WrongBackend)
    with pytest.raises(PlanRejected):
        load_version(version, "eager", None, 1, PlanCache(tmp_path), (2,))


class AbsentBackend(EagerBackend):
    """Backend for a device that this machine does not have."""

    runs_here = False

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        raise PlanError("no such device")


def test_a_plan_that_cannot_run_here_is_validated_where_it_can(version: ModelVersion, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    compile_plans(version, AbsentBackend("fp32", 1), cache, (2,))
    assert [record.validations for record in cache.records()] == [()] * 3
    plans = load_plans(version, EagerBackend("fp32", 1), cache, (2,))
    assert plans.num_built == 0
    assert all(record.validations[0].is_accepted for record in cache.records())


class ScaledBackend(EagerBackend):
    """Backend whose rows are 1e-6 larger in batches above two rows."""

    def load(self, spec: PlanSpec, folder: Path, source: Callable[[], nn.Module]) -> Plan:
        plan = super().load(spec, folder, source)

        def compute(*inputs: Array) -> Array:
            output = by_row(plan)(*inputs)
            is_large = spec.stage is Stage.BASE and len(output) > 2
            return np.asarray(output * np.float32(1 + 1e-6)) if is_large else output

        return FunctionPlan(spec, compute)


def test_the_fingerprint_names_the_bytes_of_strict_rows(version: ModelVersion, tmp_path: Path) -> None:
    """Workers with other buckets share it if their rows are equal: a strict image is then the same."""

    def fingerprint(precision: Precision, buckets: tuple[int, ...]) -> str:
        return load_plans(version, ScaledBackend(precision, 1), PlanCache(tmp_path), buckets).fingerprint

    first = fingerprint("fp32", (1, 2))
    assert fingerprint("fp32", (1, 2)) == fingerprint("fp32", (2,)) == first
    assert len({first, fingerprint("fp32", (4,)), fingerprint("bf16", (1, 2))}) == 3


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
    inputs = _random_inputs(version, Stage.BASE, 4)
    exact, rough = (run(plans.by_stage[Stage.BASE], inputs) for plans in (eager_plans, low))
    np.testing.assert_allclose(rough, exact, rtol=0.1, atol=0.1)
    assert not np.array_equal(rough, exact)


def test_weights_that_are_cast_once_compute_what_autocast_does(version: ModelVersion, tmp_path: Path) -> None:
    network = version.load().denoiser(Stage.RESIDUAL)
    inputs = _random_inputs(version, Stage.RESIDUAL, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = network(*(torch.from_numpy(array) for array in inputs))
    spec = PlanSpec("tiny:1", "", Stage.RESIDUAL, (4,), stage_inputs(version.config, Stage.RESIDUAL))
    output = run(get_backend("eager", "bf16", 1).load(spec, tmp_path, lambda: network), inputs)
    assert np.array_equal(output, expected.numpy())
    assert next(network.parameters()).dtype == torch.float32, "the original network is unchanged"


def _random_inputs(version: ModelVersion, stage: Stage, num_rows: int) -> list[Array]:
    """Return a guided batch: half of the labels are null."""
    rng = np.random.default_rng(0)
    null_label = version.config.num_classes
    return [
        np.repeat([1, null_label], num_rows // 2) if dtype == "int64" else rng.random((num_rows, *shape), np.float32)
        for shape, dtype in stage_inputs(version.config, stage)
    ]


def test_buckets_that_hold_no_guided_step_are_refused(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"buckets \(1,\) hold no guided step of tiny:1; allowed: at least one of 2"):
        load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path), (1,))
