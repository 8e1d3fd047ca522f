"""The host's time embedding is the denoiser's, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msf_engine.denoiser import TimeEmbedding
from msf_engine.denoiser_config import TimeConfig
from msf_engine.eager_network import host_time_embedding
from msf_engine.repository import ModelVersion
from msf_engine.time_embedding import TIME_FEATURES, HostTimeEmbedding
from msf_scheduler.stage import Stage

TIMES = np.concatenate((np.linspace(0, 1, 97), np.random.default_rng(0).random(160)))
VARIANTS = [TimeConfig(), TimeConfig(scale=1), TimeConfig(downscale_freq_shift=1)]
LEVELS = np.random.default_rng(1).random(len(TIMES))


@pytest.mark.parametrize("time", VARIANTS, ids=str)
def test_features_are_cosines_and_sines_of_falling_frequencies(time: TimeConfig) -> None:
    features = host_embedding(time).features(TIMES)
    assert features.shape == (len(TIMES), TIME_FEATURES)
    assert features.dtype == np.float32
    for index in (0, 1, 64, 127):
        angles = time.scale * TIMES / 10_000 ** (index / (128 - time.downscale_freq_shift))
        np.testing.assert_allclose(features[:, index], np.cos(angles), atol=1e-6)
        np.testing.assert_allclose(features[:, 128 + index], np.sin(angles), atol=1e-6)


@pytest.mark.parametrize("time", VARIANTS, ids=str)
def test_features_are_those_of_torch(time: TimeConfig) -> None:
    """They may differ in the last bit: exp and the trigonometric functions are other libraries'."""
    theirs = TimeEmbedding(8, ("timestep",), time).features(torch.from_numpy(TIMES)).numpy()
    np.testing.assert_allclose(host_embedding(time).features(TIMES), theirs, rtol=0, atol=2e-7)


def host_embedding(time: TimeConfig) -> HostTimeEmbedding:
    layers = (np.zeros((8, TIME_FEATURES)), np.zeros(8), np.zeros((8, 8)), np.zeros(8))
    return HostTimeEmbedding(*layers, time)


@pytest.mark.parametrize("stage", [Stage.BASE, Stage.RESIDUAL])  # the second has a condition, and so a noise level
def test_the_embedding_is_that_of_the_denoiser(version: ModelVersion, stage: Stage) -> None:
    network = version.load().denoiser(stage)
    expected = network.time(torch.from_numpy(TIMES), torch.from_numpy(LEVELS))
    stored = HostTimeEmbedding.of(version.read_time_embeddings()[stage], TimeConfig())
    for embed in (host_time_embedding(network), stored):
        embedding = embed(TIMES, LEVELS)
        assert embedding.dtype == np.float32
        np.testing.assert_allclose(embedding, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_the_embedding_is_the_closed_form(version: ModelVersion) -> None:
    """Two linear layers with x / (1 + exp(-x)) between them, rounded to float32 at the end."""
    weights = {name: values.astype(np.float64) for name, values in version.read_time_embeddings()[Stage.BASE].items()}
    x = np.concatenate((np.cos(1000 * 0.3 * _FREQUENCIES), np.sin(1000 * 0.3 * _FREQUENCIES))).astype(np.float32)
    hidden = weights["time.layers.0.weight"] @ x + weights["time.layers.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    expected = weights["time.layers.2.weight"] @ hidden + weights["time.layers.2.bias"]
    embed = HostTimeEmbedding.of(version.read_time_embeddings()[Stage.BASE], TimeConfig())
    embedding = embed(np.array([0.3]), np.zeros(1))[0]
    np.testing.assert_allclose(embedding, expected, rtol=1e-6, atol=1e-6)


_FREQUENCIES = 10_000.0 ** (-np.arange(128) / 128)


def test_a_schedules_rows_do_not_depend_on_each_other(version: ModelVersion) -> None:
    embed = HostTimeEmbedding.of(version.read_time_embeddings()[Stage.RESIDUAL], TimeConfig())
    together = embed(TIMES, LEVELS)
    for row in (0, 50, 200):
        np.testing.assert_allclose(embed(TIMES[[row]], LEVELS[[row]])[0], together[row], rtol=0, atol=1e-6)
