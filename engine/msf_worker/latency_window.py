"""The jobs of the last minute, for people who look now; Prometheus has the rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60.0
MAX_KEPT = 10_000


class Recent:
    """At most MAX_KEPT jobs are remembered, the latest ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._jobs: deque[tuple[float, float, int]] = deque(maxlen=MAX_KEPT)  # ended at, took ms, images

    def add(self, total_ms: float, num_images: int) -> None:
        self._jobs.append((self._clock(), total_ms, num_images))

    def images_per_s(self) -> float:
        self._forget()
        return sum(num_images for *_, num_images in self._jobs) / WINDOW_S

    def quantiles_ms(self, *shares: float) -> tuple[float | None, ...]:
        """Of the jobs' time from admission to the stored result; None: there were none."""
        self._forget()
        took = sorted(total_ms for _, total_ms, _ in self._jobs)
        return tuple(took[min(int(share * len(took)), len(took) - 1)] if took else None for share in shares)

    def _forget(self) -> None:
        since = self._clock() - WINDOW_S
        while self._jobs and self._jobs[0][0] < since:
            self._jobs.popleft()
