from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
import pytest

from msf_engine.noise import NoiseStream, _inverse_normal_cdf, gaussian_noise


@pytest.mark.parametrize(
    ("seed", "index", "stream", "digest"),
    [
        (0, 0, NoiseStream.BASE, "471956c6c955ca9b"),
        (7, 3, NoiseStream.RESIDUAL, "6f0f80a472f6791c"),
        (2**53 - 1, 63, NoiseStream.CONDITION, "201fcf9ef440d9d1"),
    ],
)
def test_the_noise_of_a_sample_never_changes(seed: int, index: int, stream: NoiseStream, digest: str) -> None:
    noise = gaussian_noise((4, 8, 8), seed=seed, index=index, stream=stream)
    assert hashlib.sha256(noise.tobytes()).hexdigest()[:16] == digest


def test_every_seed_index_and_stream_has_its_own_noise() -> None:
    keys = [(seed, index, stream) for seed in (0, 1, 256) for index in (0, 1, 256) for stream in NoiseStream]
    noises = {gaussian_noise((4,), seed=s, index=i, stream=k).tobytes() for s, i, k in keys}
    assert len(noises) == len(keys)


def test_noise_is_standard_normal() -> None:
    noise = gaussian_noise((100_000,), seed=5, index=0, stream=NoiseStream.BASE).astype(np.float64)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert (noise**4).mean() == pytest.approx(3, abs=0.15)


def test_the_inverse_cdf_agrees_with_the_standard_library() -> None:
    p = np.concatenate([np.logspace(-16, -1, 100), np.linspace(0.1, 0.9, 100), 1 - np.logspace(-1, -15, 100)])
    expected = [NormalDist().inv_cdf(value) for value in p]
    np.testing.assert_allclose(_inverse_normal_cdf(p), expected, rtol=1e-9, atol=1e-12)
