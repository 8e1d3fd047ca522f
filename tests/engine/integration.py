"""Integration of a velocity field by the schedule's updates, written out for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from msf_engine.schedule import Solver, updates


def integrate(velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float], solver: Solver) -> Tensor:
    """Carry `x` from times[0] to times[-1] along `velocity(x, t)`."""
    d_prev = x.new_zeros(x.shape)
    for t, update in zip(times, updates(solver, times), strict=False):
        d = velocity(x, t)
        x = update.a * x + update.b * d + update.c * d_prev
        d_prev = d
    return x
