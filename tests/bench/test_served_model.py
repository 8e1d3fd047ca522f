"""The evaluation measures what the executor serves."""

from __future__ import annotations

import pytest
import torch

from bench.evaluation.guidance import NEGATIVE, NONE, PLAIN, generate, most_confused, variants
from bench.evaluation.served_model import SamplingSetting, ServedModel
from msf_engine.backends import get_backend
from msf_engine.config import LatentStatistics
from msf_engine.executor import Executor, SampleRequest
from msf_engine.factorization import up
from msf_engine.model import DecodeModule
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import read_version, save_version
from msf_scheduler.stage import Stage
from tests.models import LABELS, tiny_model, with_stage


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    weights = tiny_model()
    off_center = LatentStatistics(mean=(0.3,) * 6, std=(0.7,) * 6)  # a zero residual is then not zero once normalised
    weights.config = with_stage(weights.config, Stage.RESIDUAL, statistics=off_center)
    folder = tmp_path_factory.mktemp("repository")
    save_version(folder, "tiny", "1", weights, LABELS)
    version = read_version(folder, "tiny")
    backend = get_backend("eager", "fp32", torch.get_num_threads())
    plans = load_plans(version, backend, PlanCache(folder / "plans"), buckets=(4,))
    return ServedModel(plans, DecodeModule(version.load()))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_images_are_those_of_the_executor(model: ServedModel, guidance_scale: float) -> None:
    labels = torch.arange(6) % len(LABELS)
    setting = SamplingSetting((3, 2), guidance_scale)
    images = model.generate(labels, setting, seed=7)
    assert images.shape == (6, 1, 16, 16)

    executor = Executor(model.plans, capacity=1)
    for index in (0, 5):
        slots = executor.join([SampleRequest(index % len(LABELS), 7, index, (3, 2), guidance_scale)])
        *_, result = (executor.step(slots) for _ in range(3 + 2 + 1))
        expected = torch.from_numpy(result.images[slots[0]]).movedim(-1, 0)
        assert (images[index].int() - expected.int()).abs().max() <= 1


def test_without_a_residual_the_base_alone_is_decoded(model: ServedModel) -> None:
    base = torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = model.pixels.autoencoder.decode(up(model.pixels.base.restore(base)))
    expected = ((decoded + 1) * 127.5).round().clamp(0, 255)
    assert (model.decode(base) - expected).abs().max() <= 1


def test_encoding_gives_latents_that_decode_to_the_reconstruction(model: ServedModel) -> None:
    images = torch.randint(256, (3, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    base, residual = model.encode(images)
    assert base.shape == (3, 2, 2, 2)
    assert residual.shape == (3, 6, 2, 2)
    autoencoder = model.pixels.autoencoder
    with torch.no_grad():
        direct = autoencoder.decode(autoencoder.posterior(images.float() / 127.5 - 1).mean)
    expected = ((direct + 1) * 127.5).round().clamp(0, 255)
    assert (model.decode(base, residual) - expected).abs().max() <= 1


def test_settings_are_read_and_written() -> None:
    for text, setting in (
        ("16+4@1.5", SamplingSetting((16, 4), 1.5)),
        ("8+2@0", SamplingSetting((8, 2), 0.0)),
        ("20@1.5", SamplingSetting((20,), 1.5)),
    ):
        assert SamplingSetting.parse(text) == setting
        assert str(setting) == text


@pytest.mark.parametrize("text", ["16+@1.5", "16+4", "16+4@", "16+4@x", "0+4@1", "16+0@1", "-1+4@1", "16+4@1/1", ""])
def test_a_malformed_setting_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="invalid setting "):
        SamplingSetting.parse(text)


def test_guidance_changes_the_images_where_it_acts(model: ServedModel) -> None:
    labels, every = torch.arange(6) % len(LABELS), variants(model.config)
    images = {name: generate(model, guidance, labels, None, seed=7) for name, guidance in every.items()}
    assert torch.equal(images[PLAIN], model.generate(labels, model.default_setting, seed=7))
    assert torch.equal(images[PLAIN], images[NEGATIVE])
    changed = {name for name in images if not torch.equal(images[name], images[PLAIN])}
    assert changed >= {NONE, "first 1 of 2 channels", "times 0.3 to 1"}
    steered = generate(model, every[NEGATIVE], labels, (labels + 1) % len(LABELS), seed=7)
    assert not torch.equal(steered, images[PLAIN])


def test_the_most_confused_class_is_another_one() -> None:
    labels, seen = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 2, 0, 1, 2])
    assert most_confused(labels, seen, 3).tolist()[:2] == [2, 0]
