"""Timesteps and solvers. Time runs from 1 (noise) to 0 (data) along x_t = (1 - t) data + t noise.

The network predicts the velocity d = dx/dt = noise - data; a flow map predicts its average over the step. Every solver
makes one evaluation per step and is an update x' = a x + b d + c d_prev, so one compiled plan serves all of them: only
the coefficients differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

VelocitySolver = Literal["euler", "ab2"]
Solver = Literal[VelocitySolver, "flow_map"]


@dataclass(frozen=True)
class Update:
    """The coefficients of x' = a x + b d + c d_prev."""

    a: float
    b: float
    c: float


def timesteps(num_steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """Return `num_steps` + 1 times from 1 to 0, more of them near the noise if `shift` > 1 (arXiv 2403.03206)."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    uniform = [1 - step / num_steps for step in range(num_steps + 1)]
    return tuple(t / (t + (1 - t) / shift) for t in uniform)


def euler(times: Sequence[float], step: int) -> Update:
    """Return the first-order update: follow the velocity."""
    return Update(1.0, times[step + 1] - times[step], 0.0)


def flow_map(times: Sequence[float], step: int) -> Update:
    """Return the update of a flow map (Boffi et al., arXiv 2406.07507): with the average velocity, Euler's is exact."""
    return euler(times, step)


def ab2(times: Sequence[float], step: int) -> Update:
    """Return the second-order update: Adams-Bashforth with variable steps (Hairer et al., Solving ODEs I, §III.5).

    The first step has no previous velocity and is Euler's.
    """
    if step == 0:
        return euler(times, step)
    size = times[step + 1] - times[step]
    ratio = size / (times[step] - times[step - 1])
    return Update(1.0, size * (1 + ratio / 2), -size * ratio / 2)


def updates(solver: Solver, times: Sequence[float]) -> tuple[Update, ...]:
    """Return the update of every step along `times`."""
    rule = {"euler": euler, "ab2": ab2, "flow_map": flow_map}[solver]
    return tuple(rule(times, step) for step in range(len(times) - 1))
