"""Run the loads of a sweep: each kind alone first, then every rate in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TextIO

from msf_cli.load.arrivals import Arrivals
from msf_cli.load.generator import LoadClient, measure_alone, open_loop
from msf_cli.load.mix import Kind, Mix, plan_load
from msf_cli.load.report import Report, standalone_latencies, summarize
from msf_cli.load.results import LoadTally
from msf_cli.load.text import show_progress


@dataclass
class Sweep:
    """Loads to send and their results: `run` writes `standalone` and `tallies`, which stay valid if it is cancelled.

    `num_alone_runs` 0 measures no standalone latencies and reports no objectives.
    """

    arrivals: Arrivals
    rates_per_s: Sequence[float]
    duration_s: float
    mix: Mix
    seed: int
    num_alone_runs: int
    standalone: dict[Kind, float] = field(default_factory=dict)
    tallies: list[LoadTally] = field(default_factory=list)

    async def run(self, client: LoadClient, progress: TextIO) -> None:
        """Run all loads. Raises LoadError, before any load, when the server cannot answer such requests."""
        num_labels = await client.num_labels()
        if self.num_alone_runs:
            print("measuring each kind alone", file=progress)
            self.standalone = standalone_latencies(await measure_alone(client, self.mix.kinds, self.num_alone_runs))
        for rate_per_s in self.rates_per_s:
            requests = plan_load(self.arrivals, rate_per_s, self.duration_s, self.mix, num_labels, self.seed)
            print(f"{len(requests)} requests at {rate_per_s:g}/s for {self.duration_s:g} s", file=progress)
            tally = LoadTally()
            self.tallies.append(tally)
            display = asyncio.create_task(show_progress(tally, progress))
            try:
                await open_loop(client, requests, tally)
            finally:
                display.cancel()
                await asyncio.wait([display])

    def reports(self, slo_scales: Sequence[float]) -> list[tuple[float, Report]]:
        """Return each rate with its report."""
        return [
            (rate_per_s, summarize(tally.results, self.standalone, slo_scales))
            for rate_per_s, tally in zip(self.rates_per_s, self.tallies, strict=False)  # a stopped sweep has fewer
        ]
