"""Run the loads of a sweep: each kind alone first, then every rate in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from msf_cli.load.generator import LoadClient, measure_alone, open_loop
from msf_cli.load.mix import Kind
from msf_cli.load.report import Report, standalone_latencies, summarize
from msf_cli.load.results import LoadTally
from msf_cli.load.text import show_progress
from msf_cli.load.workload import LoadPlan, Workload


@dataclass
class Sweep:
    """Loads to send and their results, which stay valid if `run` is cancelled: `standalone`, `plans` and `tallies`.

    The rate None is that of a trace. `num_alone_runs` 0 measures no standalone latencies: only a trace has objectives
    then.
    """

    workload: Workload
    rates_per_s: Sequence[float | None]
    duration_s: float
    seed: int
    num_alone_runs: int
    standalone: dict[Kind, float] = field(default_factory=dict)
    plans: list[LoadPlan] = field(default_factory=list)
    tallies: list[LoadTally] = field(default_factory=list)

    async def run(self, client: LoadClient, progress: TextIO) -> None:
        """Run all loads. Raises LoadError, before any load, when the server cannot answer such requests."""
        num_labels = await client.num_labels()
        if self.num_alone_runs:
            print("measuring each kind alone", file=progress)
            results = await measure_alone(client, self.workload.kinds, self.num_alone_runs)
            self.standalone = standalone_latencies(results)
        for rate_per_s in self.rates_per_s:
            plan = self.workload.plan(rate_per_s, self.duration_s, num_labels, self.seed)
            print(f"{len(plan.requests)} requests in {plan.duration_s:g} s: {plan.offered_per_s:.3g}/s", file=progress)
            tally = LoadTally()
            self.plans.append(plan)
            self.tallies.append(tally)
            display = asyncio.create_task(show_progress(tally, progress))
            try:
                await open_loop(client, plan.requests, tally)
            finally:
                display.cancel()
                await asyncio.wait([display])

    def reports(self, slo_scales: Sequence[float]) -> list[tuple[float, Report]]:
        """Return the offered rate of each load, as it was drawn, with its report."""
        return [
            (plan.offered_per_s, summarize(tally.results, self.standalone, slo_scales))
            for plan, tally in zip(self.plans, self.tallies, strict=True)
        ]
