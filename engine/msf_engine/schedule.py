"""Schedules and solvers: which steps lead from noise to data, as coefficients that any plan can be stepped with.

Every process served here is, in suitable coordinates, the differential equation dy/du = d, where d is the network's
output and y = x / s. In a flow, s = 1 and u is time; in a variance-preserving process, s = alpha and u = sigma / alpha.
A solver with one evaluation per step is then an update x' = a x + b d + c d_prev, and one compiled plan serves all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Solver = Literal["euler", "ab2", "ddim", "flow_map"]
"""`euler`, first order. `ab2`, Adams-Bashforth of second order (Hairer et al., Solving ODEs I, §III.5); in a
variance-preserving process it is DEIS's rho-AB2 (arXiv 2204.13902). `ddim`, Euler in sigma / alpha (arXiv 2010.02502).
`flow_map`, Euler with the average velocity of a flow map, which is exact (arXiv 2406.07507)."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """N steps, in arrays (N,). Step i evaluates the network at `times[i]`; s and u go from a start to an end.

    `noise_times` are the same times as fractions, 1 for noise and 0 for data, whichever way the network's time runs.
    """

    times: Floats
    noise_times: Floats
    s_start: Floats
    s_end: Floats
    u_start: Floats
    u_end: Floats
    u_data: float  # at which y is the data

    def __len__(self) -> int:
        return len(self.times)

    def updates(self, solver: Solver) -> Floats:
        """Return the coefficients a, b, c of every step: (N, 3)."""
        size = self.u_end - self.u_start
        a, b, c = self.s_end / self.s_start, size, np.zeros(len(self))
        if solver == "ab2":  # the first step has no previous output and stays Euler's
            ratio = size[1:] / np.diff(self.u_start)
            b = np.append(size[:1], size[1:] * (1 + ratio / 2))
            c = np.append(c[:1], -size[1:] * ratio / 2)
        return np.stack((a, self.s_end * b, self.s_end * c), axis=1)

    def estimates(self) -> Floats:
        """Return p, q of every step, (N, 2): the data as estimated after it is p x - q d."""
        return np.stack((1 / self.s_end, self.u_end - self.u_data), axis=1)


def flow_times(num_steps: int, shift: float = 1.0) -> Floats:
    """Return `num_steps` + 1 times from 1 to 0, more of them near the noise if `shift` > 1 (arXiv 2403.03206)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    uniform = 1 - np.arange(num_steps + 1) / num_steps
    return np.asarray(uniform / (uniform + (1 - uniform) / shift))


def flow_schedule(noise_times: Floats, data_at: Literal[0, 1] = 0) -> Schedule:
    """Return the schedule along N + 1 times from noise (1) to data (0) of a flow whose data is at time `data_at`."""
    times = 1 - noise_times if data_at else noise_times
    ones = np.ones(len(times) - 1)
    return Schedule(times[:-1], noise_times[:-1], ones, ones, times[:-1], times[1:], float(data_at))
