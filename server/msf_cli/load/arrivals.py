"""Arrival processes: the times at which requests are due, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]  # (num_requests,) ascending seconds from the start
Arrivals = Callable[[float, float, np.random.Generator], Times]  # (rate_per_s, duration_s, rng) -> times


def poisson(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Draw independent arrivals in [0, duration_s)."""
    return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate_per_s * duration_s)))


def bursty(
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    *,
    burstiness: float = 3.0,
    burst_share: float = 0.2,
    mean_burst_s: float = 1.0,
) -> Times:
    """Draw a two-state Markov-modulated Poisson process of mean rate `rate_per_s` in [0, duration_s).

    Bursts have `burstiness` times the mean rate, take `burst_share` of the time and last `mean_burst_s` on average; the
    calm between them has the remaining rate. Raises ValueError when that would be negative.
    """
    if not 1 <= burstiness <= 1 / burst_share:
        raise ValueError(
            f"Invalid burstiness {burstiness:g}. Allowed: 1 to {1 / burst_share:g}, "
            f"because bursts take {burst_share:.0%} of the time."
        )
    calm_rate_per_s = rate_per_s * (1 - burst_share * burstiness) / (1 - burst_share)
    mean_calm_s = mean_burst_s * (1 - burst_share) / burst_share
    in_burst = rng.random() < burst_share
    phases, now = [np.empty(0)], 0.0
    while now < duration_s:
        length_s = rng.exponential(mean_burst_s if in_burst else mean_calm_s)
        length_s = min(length_s, duration_s - now)
        phases.append(now + poisson(burstiness * rate_per_s if in_burst else calm_rate_per_s, length_s, rng))
        now += length_s
        in_burst = not in_burst
    return np.concatenate(phases)
