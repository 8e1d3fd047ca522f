from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msf_engine.schedule import Solver, timesteps, updates
from tests.engine.support import integrate


@given(num_steps=st.integers(1, 300), shift=st.floats(0.1, 10))
def test_timesteps_run_from_noise_to_data(num_steps: int, shift: float) -> None:
    times = timesteps(num_steps, shift)
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(times))


def test_a_shift_puts_more_steps_near_the_noise() -> None:
    assert timesteps(4, 3.0)[2] > timesteps(4)[2] == 0.5


def test_zero_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        timesteps(0)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_straight_path_is_followed_exactly(solver: Solver, num_steps: int) -> None:
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    end = integrate(lambda x, t: noise - data, noise, timesteps(num_steps, 2.0), solver)
    torch.testing.assert_close(end, data)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2)])
def test_solvers_converge_in_their_order(solver: Solver, order: int, shift: float) -> None:
    """dx/dt = x has the solution x(0) = x(1) / e; halving the steps must divide the error by 2^order."""

    def error(num_steps: int) -> float:
        one = torch.ones((), dtype=torch.float64)
        return abs(integrate(lambda x, t: x, one, timesteps(num_steps, shift), solver).item() - math.exp(-1))

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)


def test_a_velocity_linear_in_time_is_exact_for_ab2_after_its_first_step() -> None:
    """Adams-Bashforth's second order integrates polynomials of degree 1 in t without error, on uneven steps too."""
    times = timesteps(9, 2.5)
    rules = updates("ab2", times)
    x = 0.0
    for step in range(1, 9):
        x += rules[step].b * times[step] + rules[step].c * times[step - 1]
    assert x == pytest.approx((times[9] ** 2 - times[1] ** 2) / 2, abs=1e-12)
