"""TensorRT without a GPU: export, agreement of ONNX with eager, and engines that TensorRT-RTX builds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from msf_engine.backends import Precision, get_backend, tensorrt
from msf_engine.backends.tensorrt import TensorRtBackend, load_package
from msf_engine.errors import BackendUnavailable, PlanError
from msf_engine.export import export_onnx, input_names, output_name
from msf_engine.model import MsfModel
from msf_engine.plan import PlanSpec
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import compile_plans, load_plans
from msf_engine.plan_validation import EagerReference
from msf_engine.precision import lowered
from msf_engine.repository import ModelVersion
from msf_scheduler.stage import TWO_STAGES, Stage
from tests.engine.support import inputs_of, network_of, spec_of

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tests the behaviour without a GPU")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def model(version: ModelVersion) -> MsfModel:
    return version.load()


@pytest.fixture(scope="module")
def package() -> ModuleType:
    return load_package()


@pytest.mark.slow
@pytest.mark.parametrize("stage", TWO_STAGES)
@pytest.mark.parametrize(("dtype", "error"), [(None, 1e-5), (torch.float16, 2e-2)])
def test_onnx_agrees_with_eager_for_any_batch(
    version: ModelVersion, model: MsfModel, tmp_path: Path, stage: Stage, dtype: torch.dtype | None, error: float
) -> None:
    network, spec = network_of(model, stage), spec_of(model, stage, 1, 3)
    exported = network if dtype is None else lowered(network, dtype)
    export_onnx(spec, exported, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    inputs = inputs_of(version, stage)
    reference = EagerReference.of(stage, network, inputs)
    for samples in ([0], [1, 2, 3], [4, 3, 2, 1, 0, 0, 1]):
        feeds = dict(zip(input_names(spec), inputs.rows(samples), strict=True))
        (output,) = session.run([output_name(stage)], feeds)
        assert reference.error(np.asarray(output), samples) <= (1.0 if stage is Stage.DECODE else error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "precision"), [*((stage, "bf16") for stage in TWO_STAGES), (Stage.BASE, "fp16"), (Stage.BASE, "fp32")]
)
def test_engines_are_built_with_a_profile_for_each_bucket(
    model: MsfModel,
    package: ModuleType,
    stage: Stage,
    precision: Precision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = spec_of(model, stage, 1, 4)
    profiles = []
    add = tensorrt._profile

    def recording_profile(builder: object, network: object, bucket: int) -> object:
        profile = add(builder, network, bucket)
        profiles.append([tuple(shape) for shape in profile.get_shape(input_names(spec)[0])])
        return profile

    configs = []
    create = package.Builder.create_builder_config

    def recording_config(builder: object) -> object:
        configs.append(create(builder))
        return configs[-1]

    monkeypatch.setattr(tensorrt, "_profile", recording_profile)
    monkeypatch.setattr(package.Builder, "create_builder_config", recording_config)
    backend = TensorRtBackend(precision, 1)
    backend.compile(spec, network_of(model, stage), tmp_path)
    assert [file.stat().st_size > 10_000 for file in tmp_path.iterdir()] == [True]
    shape = spec.inputs[0][0]
    assert profiles == [[(bucket, *shape)] * 3 for bucket in (1, 4)]
    assert [config.get_flag(package.BuilderFlag.TF32) for config in configs] == [precision != "fp32"]
    assert "Building engine: done" in caplog.text
    assert "MB of memory so far" in caplog.text


@pytest.mark.slow
def test_every_product_of_a_bf16_network_is_in_bf16(model: MsfModel, tmp_path: Path) -> None:
    """A strongly typed network computes in the types of its ONNX graph."""
    spec, network = spec_of(model, Stage.BASE, 1), network_of(model, Stage.BASE)
    export_onnx(spec, lowered(network, torch.bfloat16), tmp_path / "network.onnx")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "network.onnx", load_external_data=False)).graph
    types = {each.name: each.data_type for each in graph.initializer}
    types |= {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Attention")]
    assert len(products) > 5
    assert {types[name] for node in products for name in node.input if name} == {onnx.TensorProto.BFLOAT16}
    assert {each.type.tensor_type.elem_type for each in graph.output} == {onnx.TensorProto.FLOAT}


def test_lowering_copies_the_network(model: MsfModel) -> None:
    network = network_of(model, Stage.BASE)
    lowered(network, torch.float16)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.slow
@without_gpu
def test_without_a_gpu_plans_are_built_but_not_validated(version: ModelVersion, tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    backend = get_backend("tensorrt", None, 1)
    compile_plans(version, backend, cache, (1, 2))
    records = cache.records()
    assert {record.plan for record in records} == set(TWO_STAGES)
    assert all(record.validations == () and record.size_bytes > 10_000 for record in records)
    compile_plans(version, backend, cache, (1, 2))
    assert cache.records() == records
    with pytest.raises(PlanError, match="runs on NVIDIA GPUs, and torch finds none"):
        load_plans(version, backend, cache, (1, 2))


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_plans_agree_with_eager_on_a_gpu(version: ModelVersion, tmp_path: Path, precision: Precision) -> None:
    cache = PlanCache(tmp_path)
    load_plans(version, get_backend("tensorrt", precision, 1), cache, (1, 2, 4))
    assert all(each.is_accepted for record in cache.records() for each in record.validations)


def test_each_precision_has_its_own_cache_entry(model: MsfModel, tmp_path: Path) -> None:
    cache, spec = PlanCache(tmp_path), spec_of(model, Stage.BASE, 1)
    entries = {cache._entry(spec, TensorRtBackend(precision, 1).fingerprint) for precision in ("fp32", "fp16", "bf16")}
    entries.add(cache._entry(replace(spec, buckets=(1, 2)), TensorRtBackend("bf16", 1).fingerprint))
    assert len(entries) == 4


def test_the_error_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "PACKAGES", ("no_such_package",))
    with pytest.raises(BackendUnavailable, match=r"pip install 'msf-serve\[tensorrt\]'"):
        get_backend("tensorrt", None, 1)


def test_the_error_has_the_reason_why_a_package_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_tensorrt.py").write_text("raise RuntimeError('libnvinfer.so.11 is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt, "PACKAGES", ("broken_tensorrt",))
    with pytest.raises(BackendUnavailable, match=r"broken_tensorrt cannot be loaded: libnvinfer.so.11 is missing"):
        get_backend("tensorrt", None, 1)


def test_the_error_has_the_reason_why_a_network_cannot_be_parsed(
    model: MsfModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(spec: PlanSpec, network: nn.Module, file: Path) -> None:
        file.write_bytes(b"no graph")

    monkeypatch.setattr(tensorrt, "export_onnx", damaged)
    with pytest.raises(PlanError, match=r"TensorRT cannot parse plan base of tiny:1: .+"):
        TensorRtBackend("bf16", 1).compile(spec_of(model, Stage.BASE, 1), network_of(model, Stage.BASE), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed")
def test_torch_tensorrt_converts_each_bucket_to_one_engine() -> None:
    """The conversion runs in another process, which simulates CUDA's responses. No engine runs."""
    command = (sys.executable, "-W", "ignore", "-m", "tests.engine.torch_tensorrt_shim")
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    sizes = json.loads(process.stdout.splitlines()[-1])
    assert sizes.keys() == {f"{stage} {bucket}.engine" for stage in TWO_STAGES for bucket in (1, 2)}
    assert all(size > 10_000 for size in sizes.values())
