"""Exported models make the images of `msf generate` in other software."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from diffusers import DiffusionPipeline

from msf_engine.backends import get_backend
from msf_engine.config import ModelConfig
from msf_engine.errors import EngineError
from msf_engine.executor import SampleRequest
from msf_engine.generate import generate
from msf_engine.interchange.exporting import export_model
from msf_engine.plan import stage_inputs
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion, read_version, save_version
from tests.models import LABELS, ddpm_config, flow_map_config, tiny_config, tiny_model, tiny_repository

CLASSES = [2, 0, 2]


@pytest.mark.parametrize("kind", ["velocity", "flow map"])
def test_a_pipeline_of_diffusers_makes_the_same_images(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    config = flow_map_config() if kind == "flow map" else None
    save_version(tmp_path / "repo", "tiny", "1", tiny_model(config=config), LABELS)
    version = read_version(tmp_path / "repo", "tiny")
    plans = load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path / "plans"), (8,))
    folder = export_model(version, "diffusers", tmp_path / "exported")
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    for num_steps, scale in ((None, None), (7, 1.9)):
        images = pipeline(
            [LABELS[label] for label in CLASSES], seed=9, num_inference_steps=num_steps, guidance_scale=scale
        ).images
        steps = version.config.split_steps(num_steps or version.config.default_num_steps)
        used = version.config.sampling.default_guidance_scale if scale is None else scale
        requests = [SampleRequest(label, 9, index, steps, used) for index, label in enumerate(CLASSES)]
        for image, expected in zip(images, generate(plans, requests), strict=True):
            assert np.abs(np.asarray(image).astype(int) - expected.squeeze(-1)).max() <= 1


def test_the_exported_folder_needs_nothing_of_msf_serve(version: ModelVersion, tmp_path: Path) -> None:
    folder = export_model(version, "diffusers", tmp_path / "exported")
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == ["pipeline", "MsfPipeline"]
    sources = list(folder.rglob("*.py"))
    assert len(sources) == 10
    assert not [file for file in sources if "import msf_" in file.read_text() or "from msf_" in file.read_text()]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", [tiny_config(), ddpm_config()], ids=["MSF", "DiT"])
def test_onnx_networks_compute_what_the_plans_compute(config: ModelConfig, tmp_path: Path) -> None:
    version = tiny_repository(tmp_path / "repo", config=config)
    eager_plans = load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path / "plans"), (8,))
    folder = export_model(version, "onnx", tmp_path / "exported")
    generator = np.random.default_rng(0)
    for stage in version.config.all_stages:
        session = onnxruntime.InferenceSession(folder / f"{stage}.onnx")
        inputs = [
            generator.integers(0, 3, (3, *shape)) if dtype == "int64" else generator.random((3, *shape), np.float32)
            for shape, dtype in stage_inputs(version.config, stage)
        ]
        names = [argument.name for argument in session.get_inputs()]
        (output,) = session.run(None, dict(zip(names, inputs, strict=True)))
        expected = eager_plans.run(stage, inputs)
        np.testing.assert_allclose(output.astype(np.float32), expected.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_a_network_that_predicts_noise_is_not_a_pipeline_of_flow(tmp_path: Path) -> None:
    version = tiny_repository(tmp_path / "repo", config=ddpm_config())
    with pytest.raises(EngineError, match=r"tiny:1 has a variance_preserving process; the format needs: flow"):
        export_model(version, "diffusers", tmp_path / "exported")
    assert [file.name for file in tmp_path.iterdir()] == ["repo"]


def test_an_existing_folder_is_not_touched(version: ModelVersion, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="exists; wanted: the name of a new folder"):
        export_model(version, "onnx", tmp_path)
    assert list(tmp_path.iterdir()) == []
