"""Schedules and solvers: flows, and the variance-preserving process of diffusers' schedulers."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from msf_engine.diffusion_process import FlowProcess, VariancePreservingProcess
from msf_engine.schedule import Solver, flow_schedule, flow_times
from tests.engine.support import integrate

Spacing = Literal["leading", "trailing", "linspace"]


@given(num_steps=st.integers(1, 300), shift=st.floats(0.1, 10))
def test_flow_times_run_from_noise_to_data(num_steps: int, shift: float) -> None:
    times = flow_times(num_steps, shift)
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(times))


def test_a_shift_puts_more_steps_near_the_noise() -> None:
    assert flow_times(4, 3.0)[2] > flow_times(4)[2] == 0.5


def test_zero_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        flow_times(0)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_straight_path_is_followed_exactly(solver: Solver, num_steps: int) -> None:
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    end = integrate(lambda x, t: noise - data, noise, flow_schedule(flow_times(num_steps, 2.0)), solver)
    torch.testing.assert_close(end, data)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2)])
def test_solvers_converge_in_their_order(solver: Solver, order: int, shift: float) -> None:
    """dx/dt = x has the solution x(0) = x(1) / e; halving the steps must divide the error by 2^order."""

    def error(num_steps: int) -> float:
        one = torch.ones((), dtype=torch.float64)
        end = integrate(lambda x, t: x, one, flow_schedule(flow_times(num_steps, shift)), solver)
        return abs(end.item() - math.exp(-1))

    assert math.log2(error(64) / error(128)) == pytest.approx(order, abs=0.1)


def test_a_velocity_linear_in_time_is_exact_for_ab2_after_its_first_step() -> None:
    """Adams-Bashforth's second order integrates polynomials of degree 1 in t without error, on uneven steps too."""
    times = flow_times(9, 2.5)
    _, b, c = flow_schedule(times).updates("ab2").T
    x = sum(b[step] * times[step] + c[step] * times[step - 1] for step in range(1, 9))
    assert x == pytest.approx((times[9] ** 2 - times[1] ** 2) / 2, abs=1e-12)


@pytest.mark.parametrize("solver", ["euler", "ab2"])
def test_a_flow_with_data_at_1_is_that_with_data_at_0_mirrored(solver: Solver) -> None:
    """SiT's network has the time 1 - t and the velocity data - noise."""
    ours, mirrored = (FlowProcess(data_at=end, shift=1.7).schedule(9) for end in (0, 1))
    np.testing.assert_allclose(mirrored.times, 1 - ours.times)
    np.testing.assert_array_equal(mirrored.noise_times, ours.noise_times)
    noise = torch.randn(2, 3, dtype=torch.float64)
    end = integrate(lambda x, t: x.sin() + t, noise, ours, solver)
    mirrored_end = integrate(lambda x, t: -(x.sin() + 1 - t), noise, mirrored, solver)
    torch.testing.assert_close(mirrored_end, end)
    np.testing.assert_allclose(mirrored.estimates() * [1, -1], ours.estimates())


def _noise_prediction(x: Tensor, t: float) -> Tensor:
    """A network that is no solution of anything, so that wrong coefficients show."""
    return (1.3 * x + 1e-3 * t).tanh()


@pytest.mark.parametrize("num_steps", [10, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variant", ["DiT", "Stable Diffusion"])
def test_ddim_is_diffusers_scheduler(variant: str, spacing: Spacing, num_steps: int) -> None:
    process = VariancePreservingProcess(timestep_spacing=spacing)
    if variant != "DiT":
        process = VariancePreservingProcess(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            timestep_spacing=spacing,
            steps_offset=1,
            set_alpha_to_one=False,
        )
    scheduler = DDIMScheduler(**process.model_dump(exclude={"kind", "prediction"}), clip_sample=False)
    scheduler.set_timesteps(num_steps)
    schedule = process.schedule(num_steps)
    assert schedule.times.tolist() == scheduler.timesteps.tolist()

    noise = expected = torch.randn(4, 8, dtype=torch.float64)
    for t in scheduler.timesteps.tolist():
        step = scheduler.step(_noise_prediction(expected, t), t, expected)
        expected = step.prev_sample
    torch.testing.assert_close(integrate(_noise_prediction, noise, schedule, "ddim"), expected, rtol=1e-5, atol=1e-5)


def test_the_estimate_of_the_data_follows_from_the_predicted_noise() -> None:
    schedule = VariancePreservingProcess().schedule(20)
    data, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    for s, u, (p, q) in zip(schedule.s_end, schedule.u_end, schedule.estimates(), strict=True):
        torch.testing.assert_close(p * (s * data + s * u * noise) - q * noise, data)
    assert schedule.estimates()[-1].tolist() == [1, 0]


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("ab2", 2)])
def test_solvers_of_a_variance_preserving_process_converge_in_their_order(solver: Solver, order: int) -> None:
    """With normal data of deviation d, noise is predicted exactly, and y = x / s has the solution y ∝ sqrt(d² + u²)."""
    deviation = 0.7
    process = VariancePreservingProcess(num_train_timesteps=100_000, beta_start=1e-6, beta_end=2e-4)

    def error(num_steps: int) -> float:
        schedule = process.schedule(num_steps)
        levels = dict(zip(schedule.times.tolist(), zip(schedule.s_start, schedule.u_start, strict=True), strict=True))

        def network(x: Tensor, t: float) -> Tensor:
            s, u = levels[t]
            return torch.as_tensor(x / s * u / (deviation**2 + u**2))

        s, u = schedule.s_start[0], schedule.u_start[0]
        exact = deviation / s / math.hypot(deviation, u)
        end = integrate(network, torch.ones((), dtype=torch.float64), schedule, solver)
        return float(abs(end.item() - exact))

    assert math.log2(error(100) / error(200)) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("num_steps", [0, 501])
def test_more_steps_than_timesteps_are_an_error(num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps must be from 1 to 500, got {num_steps}"):
        VariancePreservingProcess(steps_offset=1).schedule(num_steps)


def test_timesteps_stay_within_those_of_the_training() -> None:
    for spacing, offset in (("leading", 0), ("leading", 3), ("trailing", 0), ("linspace", 0)):
        process = VariancePreservingProcess.model_validate({"timestep_spacing": spacing, "steps_offset": offset})
        for num_steps in range(1, int(process.max_num_steps) + 1):
            times = process.schedule(num_steps).times
            assert 0 <= times.min() <= times.max() <= 999
            assert (np.diff(times) < 0).all()


def test_a_process_of_another_parametrisation_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be 'velocity'"):
        FlowProcess.model_validate({"prediction": "epsilon"})
