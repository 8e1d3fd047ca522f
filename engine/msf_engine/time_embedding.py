"""The time embedding on the host: it is the same for every sample of a timestep, so each is computed once.

In float64, rounded to float32 at the end: the result does not depend on how a library orders its sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

TIME_FEATURES = 256

TimeInput = Literal["timestep", "cond_level", "interval", "guidance_scale"]


class TimeFeatures(Protocol):
    """Frequencies of the features of a time: `config.TimeConfig`, or anything with its fields."""

    @property
    def scale(self) -> int: ...
    @property
    def downscale_freq_shift(self) -> int: ...


def time_inputs(*, has_condition: bool, is_flow_map: bool = False) -> tuple[TimeInput, ...]:
    """Return what a denoiser's time embedding is computed from, in the order of its features.

    A flow map is given the interval that it crosses and the guidance scale in addition.
    """
    velocity: tuple[TimeInput, ...] = ("timestep", "cond_level") if has_condition else ("timestep",)
    return (*velocity, "interval", "guidance_scale") if is_flow_map else velocity


_INPUTS_BY_NUMBER = {
    len(inputs): inputs
    for inputs in (
        time_inputs(has_condition=has_condition, is_flow_map=is_flow_map)
        for has_condition in (False, True)
        for is_flow_map in (False, True)
    )
}


@dataclass(frozen=True)
class HostTimeEmbedding:
    """The layers of `denoiser.TimeEmbedding` as arrays: two linear layers with SiLU between them."""

    weight1: NDArray[np.float64]  # (D, 256 x number of inputs)
    bias1: NDArray[np.float64]
    weight2: NDArray[np.float64]
    bias2: NDArray[np.float64]
    time: TimeFeatures

    @classmethod
    def of(cls, weights: Mapping[str, NDArray[np.float32]], time: TimeFeatures) -> Self:
        """Take the layers from a denoiser's weights by name. Raises KeyError."""
        names = ("layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias")
        weight1, bias1, weight2, bias2 = (weights[f"time.{name}"].astype(np.float64) for name in names)
        return cls(weight1, bias1, weight2, bias2, time)

    @property
    def inputs(self) -> tuple[TimeInput, ...]:
        """Names of the values that the embedding is computed from."""
        return _INPUTS_BY_NUMBER[self.weight1.shape[1] // TIME_FEATURES]

    def __call__(
        self,
        timesteps: NDArray[np.float64],
        cond_levels: NDArray[np.float64],
        intervals: NDArray[np.float64] | None = None,
        guidance_scales: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Return the embedding (B, D) of those of its inputs (B,) that the denoiser takes.

        `cond_levels` are noise levels of the condition; `intervals` and `guidance_scales` are for flow maps.
        """
        values: dict[TimeInput, NDArray[np.float64] | None] = {
            "timestep": timesteps,
            "cond_level": cond_levels,
            "interval": intervals,
            "guidance_scale": guidance_scales,
        }
        features = np.concatenate([self.features(_required(values, name)) for name in self.inputs], axis=1)
        hidden = features @ self.weight1.T + self.bias1
        hidden /= 1 + np.exp(-hidden)
        return (hidden @ self.weight2.T + self.bias2).astype(np.float32)

    def features(self, timesteps: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return sinusoidal features of `timesteps` (B,): (B, 256) float32, computed in float64."""
        half = TIME_FEATURES // 2
        frequencies = np.exp(-math.log(10_000) * np.arange(half) / (half - self.time.downscale_freq_shift))
        angles = self.time.scale * timesteps[:, None] * frequencies[None]
        return np.concatenate((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32)


def _required(values: Mapping[TimeInput, NDArray[np.float64] | None], name: TimeInput) -> NDArray[np.float64]:
    value = values[name]
    if value is None:
        raise ValueError(f"a flow map's time embedding needs its {name}")
    return value
