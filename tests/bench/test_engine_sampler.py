"""What the evaluation measures is what the executor serves."""

import pytest
import torch

from bench.evaluation.engine_sampler import EngineSampler
from msf_engine.backends import get_backend
from msf_engine.config import Statistics
from msf_engine.executor import Executor, SampleRequest
from msf_engine.model import DecodeModule
from msf_engine.plan_cache import PlanCache
from msf_engine.plan_loader import load_plans
from msf_engine.repository import read_version, save_version
from tests.models import LABELS, tiny_model


@pytest.fixture(scope="module")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> EngineSampler:
    model = tiny_model()
    off_center = Statistics(mean=(0.3,) * 6, std=(0.7,) * 6)  # a zero residual is then no zero once normalised
    residual = model.config.residual.model_copy(update={"statistics": off_center})
    model.config = model.config.model_copy(update={"residual": residual})
    folder = tmp_path_factory.mktemp("repository")
    save_version(folder, "tiny", "1", model, LABELS)
    version = read_version(folder, "tiny")
    backend = get_backend("eager", "fp32", torch.get_num_threads())
    plans = load_plans(version, backend, PlanCache(folder / "plans"), buckets=(4,))
    return EngineSampler(plans, DecodeModule(version.load()))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_images_are_those_of_the_executor(sampler: EngineSampler, guidance_scale: float) -> None:
    labels = torch.arange(6) % len(LABELS)
    base = sampler.base(labels, num_steps=3, guidance_scale=guidance_scale, seed=7)
    residual = sampler.residual(base, labels, num_steps=2, guidance_scale=guidance_scale, seed=7)
    images = sampler.decode(base, residual)
    assert images.shape == (6, 1, 16, 16)

    executor = Executor(sampler.plans, num_slots=1)
    for index in (0, 5):
        slot = executor.join(SampleRequest(index % len(LABELS), 7, index, 3, 2, guidance_scale))
        served = {}
        while executor.slots:
            served = executor.step([slot]).images
        expected = torch.from_numpy(served[slot]).movedim(-1, 0)
        assert (images[index].int() - expected.int()).abs().max() <= 1


def test_without_a_residual_the_base_alone_is_decoded(sampler: EngineSampler) -> None:
    base = torch.randn(5, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    preview = sampler.pixels.preview(base).movedim(-1, 1)
    assert (sampler.decode(base, None).int() - preview.int()).abs().max() <= 1


def test_encoding_gives_latents_that_decode_to_the_reconstruction(sampler: EngineSampler) -> None:
    images = torch.randint(256, (3, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    base, residual = sampler.encode(images)
    assert base.shape == (3, 2, 2, 2)
    assert residual.shape == (3, 6, 2, 2)
    autoencoder = sampler.pixels.autoencoder
    with torch.no_grad():
        direct = autoencoder.decode(autoencoder.posterior(images.float() / 127.5 - 1).mean)
    expected = ((direct + 1) * 127.5).round().clamp(0, 255)
    assert (sampler.decode(base, residual) - expected).abs().max() <= 1
