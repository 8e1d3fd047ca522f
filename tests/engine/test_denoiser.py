from __future__ import annotations

import torch

from msf_engine.denoiser import Denoiser
from tests.models import tiny_config, tiny_model


def _inputs(batch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 6, 2, 2, generator=generator),
        torch.randn(batch, 32, generator=generator),
        torch.arange(batch) % 3,
        torch.randn(batch, 2, 2, 2, generator=generator),
    )


def test_an_untrained_denoiser_predicts_zero() -> None:
    """adaLN-Zero: every block starts as the identity and the output layer at zero."""
    denoiser = Denoiser(tiny_config().residual.denoiser)
    assert not denoiser(*_inputs(2)).any()


def test_every_input_affects_the_velocity() -> None:
    denoiser = tiny_model().residual
    inputs = _inputs(2)
    velocity = denoiser(*inputs)
    assert velocity.shape == (2, 6, 2, 2)
    for changed in range(4):
        others = [(tensor + 1 if place == changed else tensor) for place, tensor in enumerate(inputs)]
        assert not torch.allclose(denoiser(*others), velocity)


def test_samples_of_a_batch_are_independent() -> None:
    denoiser = tiny_model().residual
    together = denoiser(*_inputs(4))
    for row in range(4):
        alone = denoiser(*(tensor[row : row + 1] for tensor in _inputs(4)))
        torch.testing.assert_close(alone[0], together[row])


def test_the_time_embedding_distinguishes_time_from_noise_level() -> None:
    model = tiny_model()
    half, zero = torch.tensor([0.5]), torch.tensor([0.0])
    assert not torch.allclose(model.residual.time(half, zero), model.residual.time(zero, half))
    torch.testing.assert_close(model.base.time(half, zero), model.base.time(half, half))  # it has no condition
