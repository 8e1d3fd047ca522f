"""Imported models make the images that their own pipeline makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline
from numpy.typing import NDArray

from msf_engine.backends import get_backend
from msf_engine.executor import Executor, SampleRequest
from msf_engine.generate import denoise, generate
from msf_engine.interchange.importing import ImportOptions, import_model
from msf_engine.interchange.labels import imagenet_labels
from msf_engine.model_plans import ModelPlans
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import ModelVersion, read_version
from msf_engine.sampling import SampleNoise
from msf_scheduler.stage import Stage
from tests.engine.interchange.peers import (
    CHANNELS,
    HEADS,
    LABELS,
    NUM_CLASSES,
    SIZE,
    TimmDit,
    small_vae,
    timm_state,
    write_pipeline,
    write_state,
)

NUM_STEPS, SCALE, SEED = 10, 4.0, 3
CLASSES = [1, 4, 0]
LATENT_TOLERANCE = 1e-4  # relative RMS after all steps


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("dit") / "pipeline")


@pytest.fixture(scope="module")
def dit(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    repository = tmp_path_factory.mktemp("model_repo")
    import_model(pipeline_folder, repository, "dit", ImportOptions())
    return read_version(repository, "dit")


@pytest.fixture(
    scope="module",
    params=[
        "eager",
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param(
            "inductor", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
        ),  # inside torch
    ],
)
def plans(request: pytest.FixtureRequest, dit: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> ModelPlans:
    cache = PlanCache(tmp_path_factory.mktemp("plans"))
    return load_plans(dit, get_backend(request.param, "fp32", 1), cache, (8,))


@torch.no_grad()
def images_of_diffusers(folder: Path, noise: NDArray[np.float32]) -> tuple[torch.Tensor, NDArray[np.uint8]]:
    """Sample as `DiTPipeline.__call__` does (its null label is always 1000); return latents and pixels."""
    pipeline = DiTPipeline.from_pretrained(folder)
    scheduler, transformer, vae = pipeline.scheduler, pipeline.transformer, pipeline.vae
    assert isinstance(scheduler, DDIMScheduler)
    assert isinstance(vae, AutoencoderKL)
    scheduler.set_timesteps(NUM_STEPS)
    x, labels = torch.from_numpy(noise), torch.tensor([*CLASSES, *[NUM_CLASSES] * len(CLASSES)])
    for t in scheduler.timesteps:
        output = transformer(torch.cat((x, x)), timestep=t.expand(len(labels)), class_labels=labels).sample
        conditional, unconditional = output[:, :CHANNELS].chunk(2)
        guided = unconditional + SCALE * (conditional - unconditional)
        x = scheduler.step(guided, t, x).prev_sample
    pixels = (vae.decode(x / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return x, (pixels.numpy() * 255).round().astype(np.uint8)


def test_a_dit_makes_the_images_of_diffusers(plans: ModelPlans, pipeline_folder: Path) -> None:
    seeds = [SEED] * len(CLASSES)
    noise = SampleNoise.of(plans.config, seeds, range(len(CLASSES))).stages[0]
    expected_latents, expected_images = images_of_diffusers(pipeline_folder, noise)
    latents = denoise(plans, Stage.DENOISE, noise, np.array(CLASSES), NUM_STEPS, SCALE)
    difference = np.linalg.norm(latents - expected_latents.numpy())
    assert difference < LATENT_TOLERANCE * np.linalg.norm(expected_latents.numpy())
    requests = [SampleRequest(label, SEED, index, (NUM_STEPS,), SCALE) for index, label in enumerate(CLASSES)]
    executor = Executor(plans, len(CLASSES))
    slots = executor.join(requests)
    for _ in range(NUM_STEPS):
        executor.step(slots)
    images = executor.step(slots).images
    for slot, expected in zip(slots, expected_images, strict=True):
        assert np.abs(images[slot].astype(int) - expected).max() <= 1


def test_an_imported_config_says_how_the_pipeline_samples(dit: ModelVersion) -> None:
    config, stage = dit.config, dit.config.stages[0]
    assert config.process.kind == "variance_preserving"
    assert (config.sampling.solver, config.default_num_steps, config.sampling.default_guidance_scale) == ("ddim", 50, 4)
    assert stage.statistics.std == pytest.approx((1 / 0.18215,) * CHANNELS)
    assert (config.image.size, config.image.channels) == (2 * SIZE, 3)
    assert dit.labels == LABELS
    card = (dit.folder.parent / "README.md").read_text()
    assert "transformer/diffusion_pytorch_model.safetensors" in card
    assert "CC-BY-NC" in card


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    small_vae().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    return tmp_path / "labels.json"


def test_a_sit_follows_its_own_flow(tmp_path: Path, vae: Path, labels_file: Path) -> None:
    """SiT's time runs from noise at 0 to data at 1; guidance acts on the first three channels."""
    state = timm_state()
    file = write_state(tmp_path / "sit.safetensors", state)
    options = ImportOptions(vae, "sit", labels_file, HEADS)
    import_model(file, tmp_path / "repo", "sit", options)
    version = read_version(tmp_path / "repo", "sit")
    plans = load_plans(version, get_backend("eager", "fp32", 1), PlanCache(tmp_path / "plans"), (2,))
    network, num_steps = TimmDit(state, HEADS), 4
    noise = SampleNoise.of(plans.config, [SEED], [0]).stages[0]
    x, previous = torch.from_numpy(noise), None
    for step in range(num_steps):
        t = torch.full((1,), step / num_steps)
        conditional, unconditional = (network(x, t, torch.tensor([label])) for label in (2, NUM_CLASSES))
        guided = unconditional + SCALE * (conditional - unconditional)
        velocity = torch.cat((guided[:, :3], conditional[:, 3:]), dim=1)
        slope = velocity if previous is None else 1.5 * velocity - 0.5 * previous  # Adams-Bashforth of second order
        x, previous = x + slope / num_steps, velocity
    latents = denoise(plans, Stage.DENOISE, noise, np.array([2]), num_steps, SCALE)
    assert np.linalg.norm(latents - x.numpy()) < LATENT_TOLERANCE * float(x.norm())
    assert generate(plans, [SampleRequest(2, SEED, 0, (2,), SCALE)])[0].shape == (16, 16, 3)


def test_repa_guides_at_late_times_alone(tmp_path: Path, vae: Path, labels_file: Path) -> None:
    file = write_state(tmp_path / "repa.safetensors", timm_state(learned_sigma=False, projectors=True))
    import_model(file, tmp_path / "repo", "repa", ImportOptions(vae, "repa", labels_file, HEADS))
    config = read_version(tmp_path / "repo", "repa").config
    assert config.stages[0].guidance.interval == (0.0, 0.7)
    assert (config.process.kind, config.sampling.default_guidance_scale) == ("flow", 1.8)


def test_weights_keep_their_precision(tmp_path: Path, vae: Path, labels_file: Path) -> None:
    from safetensors.torch import load_file

    state = {name: tensor.half() for name, tensor in timm_state().items()}
    file = write_state(tmp_path / "sit.safetensors", state)
    folder = import_model(file, tmp_path / "repo", "sit", ImportOptions(vae, "sit", labels_file, HEADS))
    assert {tensor.dtype for tensor in load_file(folder / "denoise.safetensors").values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(folder / "autoencoder.safetensors").values()} == {torch.float32}


def test_imagenets_names_are_a_thousand_distinct_ones() -> None:
    labels = imagenet_labels()
    assert len({label.casefold() for label in labels}) == 1000
    assert (labels[0], labels[134], labels[207], labels[517]) == (
        "tench",
        "crane (bird)",
        "golden retriever",
        "crane (machine)",
    )


def test_a_thousand_classes_without_names_are_imagenets(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "pipeline", id2label=False, num_embeds_ada_norm=1000, num_layers=1)
    import_model(folder, tmp_path / "repo", "dit", ImportOptions())
    assert read_version(tmp_path / "repo", "dit").labels == tuple(imagenet_labels())
