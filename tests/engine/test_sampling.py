"""The host's arithmetic: guidance and the solvers' update."""

from __future__ import annotations

import numpy as np
import pytest

from msf_engine.noise import NoiseStream, gaussian_noise
from msf_engine.plan import Array
from msf_engine.sampling import SampleNoise, Trajectory, advance, guide, sample
from tests.models import tiny_config


def _latents(seed: int) -> Array:
    return gaussian_noise((3, 6, 2, 2), seed=seed, index=0, stream=NoiseStream.BASE)


def test_guidance_moves_away_from_the_null_label() -> None:
    """D = null + w (conditional - null), per row: at 0 the null label's velocity, at 1 the label's."""
    conditional, null = _latents(1), _latents(2)
    scales = np.array([0.0, 1.0, 3.0], np.float32)[:, None, None, None]
    guided = guide(conditional, null, scales)
    np.testing.assert_array_equal(guided[0], null[0])
    np.testing.assert_allclose(guided[1], conditional[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(guided[2], 3 * conditional[2] - 2 * null[2], rtol=1e-5, atol=1e-5)
    assert guided.dtype == np.float32


def test_an_update_is_linear_in_position_velocity_and_last_velocity() -> None:
    x, d, d_prev = _latents(1), _latents(2), _latents(3)
    a, b, c = np.array([[1.0, 0.5, 2.0], [-0.1, -0.2, 0.3], [1.0, 0.0, -1.0]], np.float32)[:, :, None, None, None]
    moved = advance(x, d, d_prev, a, b, c)
    np.testing.assert_allclose(moved[1], 0.5 * x[1] - 0.2 * d[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved[2], 2 * x[2] + 0.3 * d[2] - d_prev[2], rtol=1e-5, atol=1e-5)
    assert moved.dtype == np.float32


@pytest.mark.parametrize(("scale", "num_rows"), [(1.0, [3]), (2.0, [6]), (0.0, [6])])
def test_a_guided_step_evaluates_two_rows_of_each_sample(scale: float, num_rows: list[int]) -> None:
    batches: list[list[Array]] = []

    def network(inputs: object) -> Array:
        batches.append(list(inputs))  # type: ignore[call-overload]
        return np.asarray(batches[-1][0])

    trajectory = Trajectory(
        np.zeros((1, 4), np.float32), np.array([scale], np.float32), np.array([[1, -1, 0]], np.float32)
    )
    cond = np.arange(3, dtype=np.float32)[:, None, None, None]
    sample(network, trajectory, _latents(1), np.array([0, 1, 2]), 9, cond)
    assert [len(x) for x, *_ in batches] == num_rows
    _, embedding, labels, conditions = batches[0]
    assert labels.tolist() == [0, 1, 2, 9, 9, 9][: num_rows[0]]
    assert conditions.ravel().tolist() == [0, 1, 2, 0, 1, 2][: num_rows[0]]
    assert len(embedding) == num_rows[0]


def test_the_noise_of_a_sample_does_not_depend_on_the_others() -> None:
    config = tiny_config()
    together, alone = SampleNoise.of(config, [5, 5, 8], [0, 1, 1]), SampleNoise.of(config, [8], [1])
    assert len(together) == 3
    streams = (NoiseStream.BASE, NoiseStream.RESIDUAL, NoiseStream.CONDITION)
    parts = ((*noise.stages, noise.condition) for noise in (together, alone))
    for stream, noise, noise_alone in zip(streams, *parts, strict=True):
        assert noise is not None
        assert noise_alone is not None
        expected = gaussian_noise(noise.shape[1:], seed=8, index=1, stream=stream)
        np.testing.assert_array_equal(noise[2], expected)
        np.testing.assert_array_equal(noise_alone[0], expected)
