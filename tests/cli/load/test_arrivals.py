"""Arrival processes against closed forms."""

from __future__ import annotations

from functools import partial
from math import exp

import numpy as np
import pytest

from msf_cli.load.arrivals import Arrivals, bursty, poisson

RATE_PER_S, WINDOW_S, NUM_WINDOWS = 20.0, 5.0, 4000


def counts(arrivals: Arrivals) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    rng = np.random.default_rng(1)
    return np.array([len(arrivals(RATE_PER_S, WINDOW_S, rng)) for _ in range(NUM_WINDOWS)])


@pytest.mark.parametrize("arrivals", [poisson, bursty, partial(bursty, burstiness=5.0)])
def test_times_are_ascending_in_their_window_and_repeat_under_a_seed(arrivals: Arrivals) -> None:
    times = arrivals(RATE_PER_S, WINDOW_S, np.random.default_rng(3))
    assert len(times) > 10
    assert np.all(np.diff(times) >= 0)
    assert times[0] >= 0
    assert times[-1] < WINDOW_S
    assert np.array_equal(times, arrivals(RATE_PER_S, WINDOW_S, np.random.default_rng(3)))
    assert not np.array_equal(times, arrivals(RATE_PER_S, WINDOW_S, np.random.default_rng(4)))


def test_poisson_counts_have_the_mean_as_their_variance_and_gaps_are_exponential() -> None:
    num_arrivals = counts(poisson)
    assert num_arrivals.mean() == pytest.approx(RATE_PER_S * WINDOW_S, rel=0.01)
    assert num_arrivals.var() / num_arrivals.mean() == pytest.approx(1.0, abs=0.1)
    gaps = np.diff(poisson(RATE_PER_S, 2000.0, np.random.default_rng(2)))
    assert gaps.mean() == pytest.approx(1 / RATE_PER_S, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.02)


@pytest.mark.parametrize("burstiness", [1.0, 3.0, 5.0])
def test_bursty_counts_have_the_mean_and_dispersion_of_their_modulated_process(burstiness: float) -> None:
    share, mean_burst_s = 0.2, 1.0
    calm = RATE_PER_S * (1 - share * burstiness) / (1 - share)
    rate_variance = share * (1 - share) * (burstiness * RATE_PER_S - calm) ** 2
    switching_per_s = 1 / mean_burst_s + share / (1 - share) / mean_burst_s
    decay = switching_per_s * WINDOW_S
    dispersion = 1 + 2 * rate_variance / (RATE_PER_S * switching_per_s) * (1 - (1 - exp(-decay)) / decay)

    num_arrivals = counts(partial(bursty, burstiness=burstiness, burst_share=share, mean_burst_s=mean_burst_s))
    assert num_arrivals.mean() == pytest.approx(RATE_PER_S * WINDOW_S, rel=0.03)
    assert num_arrivals.var() / num_arrivals.mean() == pytest.approx(dispersion, rel=0.1)


@pytest.mark.parametrize("burstiness", [0.5, 5.1])
def test_bursts_that_leave_no_rate_for_the_calm_are_refused(burstiness: float) -> None:
    with pytest.raises(ValueError, match=f"burstiness {burstiness:g}.* Allowed: 1 to 5"):
        bursty(RATE_PER_S, WINDOW_S, np.random.default_rng(0), burstiness=burstiness)
