"""Sliding-window throughput and latency for the status page; Prometheus has the history."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
MAX_JOBS = 10_000


class LatencyWindow:
    """Jobs that succeeded within the last `WINDOW_S`, at most `MAX_JOBS` of them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: deque[tuple[float, float, int]] = deque(maxlen=MAX_JOBS)  # finished at, total ms, images

    def add(self, total_ms: float, num_images: int) -> None:
        """Add a job that finished now."""
        self._jobs.append((self._clock(), total_ms, num_images))

    def images_per_s(self) -> float:
        """Return the mean throughput over the window."""
        self._evict()
        return sum(num_images for *_, num_images in self._jobs) / WINDOW_S

    def quantiles_ms(self, *quantiles: float) -> tuple[float | None, ...]:
        """Return quantiles of the time from admission to the stored result, or None for an empty window."""
        self._evict()
        totals = sorted(total_ms for _, total_ms, _ in self._jobs)
        return tuple(totals[min(int(q * len(totals)), len(totals) - 1)] if totals else None for q in quantiles)

    def _evict(self) -> None:
        start = self._clock() - WINDOW_S
        while self._jobs and self._jobs[0][0] < start:
            self._jobs.popleft()
