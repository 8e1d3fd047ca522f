from __future__ import annotations

import pytest
import torch

from msf_engine.config import LatentStatistics
from msf_engine.denoiser import Denoiser
from msf_engine.factorization import compose
from msf_training.autoencoder_loss import AutoencoderObjective, autoencoder_loss, low_pass, residual_share
from msf_training.dataset import Split, to_uint8, to_unit_range
from msf_training.denoiser_loss import DenoiserObjective, denoiser_loss
from msf_training.latents import Latents, encode_latents, normalize
from tests.models import tiny_config, tiny_model


def _split(count: int = 12) -> Split:
    images = torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Split(images, torch.arange(count) % 3)


def test_pixels_survive_the_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_unit_range(levels)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_uint8(to_unit_range(levels)), levels)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_residual_share_is_the_share_of_variance(share: float) -> None:
    signs = torch.tensor([-1.0, 1.0])[torch.randint(0, 2, (400, 2, 4, 4), generator=torch.Generator().manual_seed(0))]
    base = (1 - share) ** 0.5 * torch.randn(400, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    residual = torch.cat((2 * share**0.5 * signs, torch.zeros(400, 4, 4, 4)), dim=1)
    assert residual_share(compose(base, residual)).item() == pytest.approx(share, abs=0.02)


def test_the_low_pass_keeps_what_is_smooth_and_drops_what_is_not() -> None:
    flat, checks = torch.full((1, 1, 8, 8), 0.3), torch.ones(1, 1, 8, 8)
    checks[..., ::2, 1::2] = checks[..., 1::2, ::2] = -1
    torch.testing.assert_close(low_pass(flat), flat)
    torch.testing.assert_close(low_pass(checks), torch.zeros_like(checks))


def test_the_autoencoder_loss_trains_every_weight_and_depends_on_its_generator_alone() -> None:
    autoencoder = tiny_model().autoencoder.requires_grad_(True)
    objective = AutoencoderObjective(batch_size=4)

    def loss(seed: int) -> float:
        losses = autoencoder_loss(autoencoder, _split(), objective, torch.Generator().manual_seed(seed))
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        return float(losses["loss"].detach())

    assert loss(1) == loss(1) != loss(2)
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())


@pytest.fixture(scope="module")
def latents() -> Latents:
    return encode_latents(tiny_model().autoencoder, _split(), batch_size=5)


def test_encoded_latents_have_unit_variance(latents: Latents) -> None:
    for stage in latents.stages:
        torch.testing.assert_close(stage.mean((0, 2, 3)), torch.zeros(stage.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(stage.std((0, 2, 3)), torch.ones(stage.shape[1]), rtol=0, atol=1e-4)


def test_normalizing_takes_the_statistics_of_each_channel() -> None:
    statistics = LatentStatistics(mean=(1.0, 2.0), std=(2.0, 4.0))
    values = normalize(torch.tensor([3.0, 10.0]).reshape(1, 2, 1, 1), statistics)
    assert values.flatten().tolist() == [1.0, 2.0]


def test_an_untrained_denoiser_has_the_loss_of_predicting_nothing(latents: Latents) -> None:
    """Its output is zero, so the loss is E|noise - data|² = 2 for unit variance."""
    config = tiny_config()
    objective = DenoiserObjective(batch_size=4096)
    for stage in config.stages:
        losses = denoiser_loss(Denoiser(stage.denoiser), latents, objective, torch.Generator().manual_seed(0))
        assert losses["loss"].item() == pytest.approx(2, abs=0.1)


def test_the_named_fraction_of_named_images_is_labelled_by_name() -> None:
    statistics = LatentStatistics(mean=(0.0,), std=(1.0,))
    zeros = torch.zeros(3, 1, 2, 2)
    labels, image_labels = torch.tensor([0, 1, 1]), torch.tensor([2, 3, -1])
    latents = Latents((zeros,), (statistics,), labels, image_labels=image_labels)
    indices = torch.arange(3).repeat(2000)
    drawn = latents.draw_labels(indices, 0.25, torch.Generator().manual_seed(0)).view(2000, 3)
    assert (drawn == image_labels).double().mean(0)[:2].tolist() == pytest.approx([0.25, 0.25], abs=0.03)
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 2].tolist()) == {1}
    assert torch.equal(latents.draw_labels(indices, 0.0, torch.Generator()), labels.repeat(2000))
