"""The outcome of each request of a load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msf_cli.load.mix import Kind


class RequestOutcome(StrEnum):
    """Outcome of one request, as a client sees it."""

    SUCCEEDED = "succeeded"
    REFUSED = "refused"  # 429: the queue was full
    EXPIRED = "expired"  # 504: its deadline passed
    FAILED = "failed"  # any other status
    UNREACHED = "unreached"  # no connection, or a broken one
    UNFINISHED = "unfinished"  # the load was stopped before the answer


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Times are seconds from the start of the load; `timings_ms` are the server's own, for a success."""

    kind: Kind
    due_s: float
    sent_s: float
    ended_s: float
    outcome: RequestOutcome
    status: int | None = None
    error: str | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    slo_s: float | None = None  # of its request

    @property
    def latency_s(self) -> float:
        """Seconds since the *intended* send time: see `open_loop`."""
        return self.ended_s - self.due_s

    @property
    def late_s(self) -> float:
        """Delay of the generator itself."""
        return self.sent_s - self.due_s


@dataclass
class LoadTally:
    """Results so far: written by the generator, read by the progress display, complete even when a load is stopped."""

    results: list[RequestResult] = field(default_factory=list)
    num_sent: int = 0

    @property
    def num_in_flight(self) -> int:
        return self.num_sent - len(self.results)

    @property
    def outcomes(self) -> Counter[RequestOutcome]:
        return Counter(result.outcome for result in self.results)
