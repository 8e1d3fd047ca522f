from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from msf_engine.denoiser import Denoiser, rotary_embedding, rotate
from msf_engine.denoiser_config import DenoiserConfig, DenoiserVariant
from msf_scheduler.stage import Stage
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
    denoiser = Denoiser(tiny_config().stage(Stage.RESIDUAL).denoiser)
    assert not denoiser(*_inputs(2)).any()


def test_every_input_affects_the_velocity() -> None:
    denoiser = tiny_model().denoiser(Stage.RESIDUAL)
    inputs = _inputs(2)
    velocity = denoiser(*inputs)
    assert velocity.shape == (2, 6, 2, 2)
    for changed in range(4):
        others = [(tensor + 1 if place == changed else tensor) for place, tensor in enumerate(inputs)]
        assert not torch.allclose(denoiser(*others), velocity)


def test_samples_of_a_batch_are_independent() -> None:
    denoiser = tiny_model().denoiser(Stage.RESIDUAL)
    together = denoiser(*_inputs(4))
    for row in range(4):
        alone = denoiser(*(tensor[row : row + 1] for tensor in _inputs(4)))
        torch.testing.assert_close(alone[0], together[row])


def test_the_time_embedding_distinguishes_time_from_noise_level() -> None:
    model = tiny_model()
    half, zero = torch.tensor([0.5]), torch.tensor([0.0])
    base, residual = (model.denoiser(stage).time for stage in (Stage.BASE, Stage.RESIDUAL))
    assert not torch.allclose(residual(half, zero), residual(zero, half))
    torch.testing.assert_close(base(half, zero), base(half, half))  # it has no condition


OPTIONS: list[dict[str, object]] = [
    {"variant": {"positions": "columns_first"}},
    {"variant": {"positions": "stored"}},
    {"variant": {"rotary": True}},
    {"variant": {"norm": "rms"}},
    {"variant": {"qk_norm": "layer"}},
    {"variant": {"qk_norm": "rms"}},
    {"variant": {"mlp": "swiglu"}},
    {"time": {"scale": 1}},
    {"time": {"downscale_freq_shift": 1}},
]


def _denoiser(**options: object) -> Denoiser:
    torch.manual_seed(0)
    shape = {"in_channels": 2, "size": 4, "width": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    denoiser = Denoiser(DenoiserConfig.model_validate({**shape, **options})).eval()
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return denoiser


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_changes_the_output(options: dict[str, object]) -> None:
    x, zero, labels = torch.randn(2, 2, 4, 4), torch.zeros(2), torch.tensor([0, 1])
    ours, other = _denoiser(), _denoiser(**options)
    if other.config.variant.positions == "stored":
        other.positions.normal_()
    outputs = [denoiser(x, denoiser.time(zero + 0.3, zero), labels) for denoiser in (ours, other)]
    assert not torch.allclose(outputs[0], outputs[1], rtol=1e-3)


def test_positions_are_among_the_weights_only_where_they_are_stored() -> None:
    assert "positions" in _denoiser(variant={"positions": "stored"}).state_dict()
    assert not {"positions", "rotary"} & set(_denoiser(variant={"rotary": True}).state_dict())


def test_a_config_without_options_does_not_mention_them() -> None:
    """The digests of today's networks are those of their configs' text."""
    config = tiny_config().stages[0].denoiser
    assert not {"time", "variant"} & set(config.model_dump())
    other = config.model_copy(update={"variant": DenoiserVariant(mlp="swiglu")})
    assert DenoiserConfig.model_validate_json(other.model_dump_json()) == other


def test_rotation_depends_on_the_distance_between_tokens_alone() -> None:
    """The product of a query and a key stays the same if both tokens move by the same rows and columns."""
    rotary = rotary_embedding(4, 8)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 16, 8)
    products = (rotate(q, rotary) @ rotate(k, rotary).transpose(-1, -2)).reshape(4, 4, 4, 4)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 1, 3, 3])
    assert not torch.isclose(products[0, 0, 1, 2], products[0, 0, 2, 1])


def test_a_rotary_width_must_divide_into_pairs_of_rows_and_columns() -> None:
    with pytest.raises(ValidationError, match="width 36 must be a multiple of 4 num_heads"):
        DenoiserConfig.model_validate(
            {
                "in_channels": 2,
                "size": 4,
                "width": 36,
                "depth": 1,
                "num_heads": 6,
                "num_classes": 3,
                "variant": {"rotary": True},
            }
        )
