"""The time embedding on the host: it is the same for every sample of a timestep, so each is computed once.

In float64, rounded to float32 at the end: the result does not depend on how a library orders its sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

TIME_FEATURES = 256


def time_features(timesteps: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return sinusoidal features of `timesteps` (B,) in [0, 1]: (B, 256) float32, computed in float64."""
    half = TIME_FEATURES // 2
    frequencies = np.exp(-math.log(10_000) * np.arange(half) / half)
    angles = 1000 * timesteps[:, None] * frequencies[None]
    return np.concatenate((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


@dataclass(frozen=True)
class HostTimeEmbedding:
    """The layers of `denoiser.TimeEmbedding` as arrays: two linear layers with SiLU between them."""

    weight1: NDArray[np.float64]  # (D, 256), or (D, 512) with a condition
    bias1: NDArray[np.float64]
    weight2: NDArray[np.float64]
    bias2: NDArray[np.float64]

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[np.float32]]) -> Self:
        """Take the layers from a denoiser's weights by name. Raises KeyError."""
        names = ("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
        return cls(*(weights[f"time.{name}"].astype(np.float64) for name in names))

    def __call__(self, timesteps: NDArray[np.float64], cond_levels: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the embedding (B, D) of timesteps (B,) and, with a condition, of its noise levels (B,)."""
        features = time_features(timesteps)
        if self.weight1.shape[1] > TIME_FEATURES:
            features = np.concatenate((features, time_features(cond_levels)), axis=1)
        hidden = features @ self.weight1.T + self.bias1
        hidden /= 1 + np.exp(-hidden)
        return (hidden @ self.weight2.T + self.bias2).astype(np.float32)
