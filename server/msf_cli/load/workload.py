"""The requests of a load: drawn from a mix, or replayed from a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np

from msf_cli.load.arrivals import Arrivals, Times
from msf_cli.load.mix import Kind, Mix, PlannedRequest, plan_load, plan_requests
from msf_cli.load.trace import Trace, span_s


@dataclass(frozen=True)
class LoadPlan:
    """Requests of one load, which are due within `duration_s`."""

    requests: Sequence[PlannedRequest]
    duration_s: float

    @property
    def offered_per_s(self) -> float:
        """Rate of the requests as they were drawn, which is not the rate that was asked for."""
        return len(self.requests) / self.duration_s if self.duration_s else 0.0


@dataclass(frozen=True)
class Workload:
    """Requests of a mix that arrive by a random process."""

    arrivals: Arrivals
    mix: Mix

    @property
    def kinds(self) -> list[Kind]:
        """Every kind of request that it may have."""
        return self.mix.kinds

    def plan(self, rate_per_s: float | None, duration_s: float, num_labels: int, seed: int) -> LoadPlan:
        """Plan a load that the seed determines."""
        assert rate_per_s is not None, "a mix has no rate of its own"
        return LoadPlan(plan_load(self.arrivals, rate_per_s, duration_s, self.mix, num_labels, seed), duration_s)


@dataclass(frozen=True)
class TraceWorkload(Workload):
    """Requests of a trace. What it does not say is drawn: contents from the mix, and times where it has none."""

    trace: Trace

    @property
    def kinds(self) -> list[Kind]:
        """Every kind of request that it may have."""
        steps = dict.fromkeys(entry.num_steps for entry in self.trace.entries)
        kinds = [
            kind if num_steps is None else replace(kind, num_steps=num_steps)
            for num_steps in steps
            for kind in self.mix.kinds
        ]
        return list(dict.fromkeys(kinds))

    def plan(self, rate_per_s: float | None, duration_s: float, num_labels: int, seed: int) -> LoadPlan:
        """Plan the first `duration_s` of the trace, at its own rate, or stretched to have `rate_per_s` on average."""
        times_rng, mix_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
        times = self._times(rate_per_s, duration_s, times_rng)
        requests = [
            replace(
                request,
                kind=request.kind if entry.num_steps is None else replace(request.kind, num_steps=entry.num_steps),
                seed=request.seed if entry.seed is None else entry.seed,
                slo_s=entry.slo_s,
            )
            for entry, request in zip(
                cycle(self.trace.entries), plan_requests(times, self.mix, num_labels, mix_rng), strict=False
            )
        ]
        is_whole = self.trace.is_timed and len(requests) == len(self.trace.entries)
        return LoadPlan(requests, max(float(times[-1]), 1.0) if is_whole else duration_s)

    def _times(self, rate_per_s: float | None, duration_s: float, rng: np.random.Generator) -> Times:
        entries = self.trace.entries
        if not self.trace.is_timed:
            assert rate_per_s is not None, "a trace without times has no rate of its own"
            return self.arrivals(rate_per_s, duration_s, rng)
        times = np.array([entry.arrived_s for entry in entries], float) - (entries[0].arrived_s or 0.0)
        if rate_per_s is not None and span_s(entries):
            times *= (len(entries) - 1) / span_s(entries) / rate_per_s
        return times[times < duration_s]
