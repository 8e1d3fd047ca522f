"""The requests of the last minute, for people who look now; Prometheus has the rest."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MAX_KEPT = 10_000


@dataclass(frozen=True)
class Window:
    durations_s: tuple[float, ...]  # sorted
    num_images: int

    @property
    def num_requests(self) -> int:
        return len(self.durations_s)

    def quantile_ms(self, share: float) -> float | None:
        """None: there were no requests."""
        if not self.durations_s:
            return None
        return 1000 * self.durations_s[min(int(share * len(self.durations_s)), len(self.durations_s) - 1)]


class Recent:
    """At most MAX_KEPT requests are remembered, the latest ones."""

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._requests: deque[tuple[float, float]] = deque(maxlen=MAX_KEPT)  # ended at, duration
        self._images: deque[tuple[float, int]] = deque(maxlen=MAX_KEPT)

    def add_request(self, duration_s: float) -> None:
        self._requests.append((self._clock(), duration_s))

    def add_images(self, count: int) -> None:
        self._images.append((self._clock(), count))

    def now(self) -> Window:
        since = self._clock() - self._window_s
        for entries in (self._requests, self._images):
            while entries and entries[0][0] < since:
                entries.popleft()
        return Window(
            tuple(sorted(duration for _, duration in self._requests)), sum(count for _, count in self._images)
        )
