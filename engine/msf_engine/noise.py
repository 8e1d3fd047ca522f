"""Noise that belongs to a sample, not to its slot in a batch.

Raw Philox integers (Salmon et al., SC 2011) keyed by (seed, sample index, stream), turned into normal deviates by an
inverse CDF defined here: the distributions of numpy and torch may change between versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class NoiseStream(IntEnum):
    """Purpose of the noise: BASE starts a model's first stage, RESIDUAL its second.

    The values are part of the reproducibility promise: never renumber.
    """

    BASE = 0
    RESIDUAL = 1
    CONDITION = 2


class NoiseKey(NamedTuple):
    """Key of one stream of noise: (seed, sample_index) name the sample."""

    seed: int
    sample_index: int
    stream: NoiseStream


def gaussian_noise(shape: tuple[int, ...], *, seed: int, index: int, stream: NoiseStream) -> NDArray[np.float32]:
    """Return standard normal float32 of `shape`, the same on every machine for the same (seed, index, stream)."""
    return flat_noise([(NoiseKey(seed, index, stream), int(np.prod(shape)))]).reshape(shape)


def flat_noise(parts: Sequence[tuple[NoiseKey, int]]) -> NDArray[np.float32]:
    """Return the first values of several streams, one after the other; one call for all is the fastest."""
    generator = np.random.Philox(0)
    state = generator.state
    raw = np.empty(sum(count for _, count in parts), np.uint64)
    start = 0
    for (seed, index, stream), count in parts:
        state["state"]["key"] = np.array([seed, (index << 8) | stream], np.uint64)
        generator.state = state  # a new generator takes five times as long
        raw[start : start + count] = generator.random_raw(count)
        start += count
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return _inverse_normal_cdf(uniform).astype(np.float32)


# Coefficients of Wichura's algorithm AS 241 (PPND16), Applied Statistics 37 (1988), highest power first.
_CENTRAL = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def _inverse_normal_cdf(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert by AS 241, with a relative error of about 1e-16 for p (N,) in (0, 1)."""
    q = p - 0.5
    x = q * _ratio(_CENTRAL, 0.180625 - q * q)
    (outer,) = np.nonzero(np.abs(q) > 0.425)
    r = np.sqrt(-np.log(np.minimum(p[outer], 1 - p[outer])))
    tail = np.where(r <= 5, _ratio(_TAIL, r - 1.6), _ratio(_FAR_TAIL, r - 5))
    x[outer] = np.copysign(tail, q[outer])
    return x


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]) -> NDArray[np.float64]:
    numerator, denominator = coefficients
    return np.asarray(_polynomial(numerator, x) / _polynomial(denominator, x))


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Evaluate by Horner's rule in place: `numpy.polyval` allocates at every power."""
    y = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y *= x
        y += coefficient
    return y
