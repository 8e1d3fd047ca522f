"""Rounds in which every server has its turn."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.client import PeerClient
from bench.peers.comparison import Comparison
from bench.peers.contenders import OURS, StartError, serve_ours, serve_peer
from bench.peers.measurements import (
    CALLERS,
    FRACTIONS,
    NOOP_CALLERS,
    WARMUP_S,
    LoadName,
    LoadRun,
    Turn,
    measure_plans,
)
from bench.peers.pipeline import PipelineOptions
from bench.peers.report import run_text

START_S, ALONE_S = 10.0, 5.0  # of a server, for the estimate


@dataclass(frozen=True)
class Budget:
    """Loads to measure, how often, and for how long each."""

    loads: Sequence[LoadName]
    num_rounds: int
    duration_s: float

    @property
    def uses_plans(self) -> bool:
        return any(load is not LoadName.NOOP for load in self.loads)

    def estimate_s(self, num_contenders: int) -> float:
        """Return roughly how long all rounds take."""
        closed_s = WARMUP_S + self.duration_s
        loads_s = {
            LoadName.CLOSED: closed_s * len(CALLERS),
            LoadName.NOOP: closed_s * len(NOOP_CALLERS),
            LoadName.MIXED: ALONE_S + 1.2 * self.duration_s * len(FRACTIONS),
        }
        turn_s = sum(START_S + loads_s[load] for load in self.loads)
        return self.num_rounds * (START_S + self.duration_s + num_contenders * turn_s)


@dataclass(frozen=True)
class Rounds:
    """Everything that the rounds need. `pythons`: the Python of each peer's environment."""

    budget: Budget
    options: PipelineOptions
    num_labels: int
    pythons: Mapping[str, Path]
    comparison: Comparison

    def measure(self) -> None:
        """Add the results of all rounds to `comparison` as they come. A peer that does not start misses its turn."""
        names = [OURS, *self.pythons]
        for number in range(self.budget.num_rounds):
            if self.budget.uses_plans:
                self.comparison.plans.append(measure_plans(self.options, self.budget.duration_s))
                log(f"round {number + 1}, {self.comparison.plans[-1]}")
            first = number % len(names)
            for name in names[first:] + names[:first]:
                self._measure_turn(name, number)

    def _measure_turn(self, name: str, number: int) -> None:
        try:
            for run in self._runs(name, number):
                self.comparison.runs.append(run)
                log(f"round {number + 1}, {run_text(run)}")
        except StartError as error:
            self.comparison.skipped[f"{name} in round {number + 1}"] = str(error)
            log(f"round {number + 1}, {name} is skipped: {error}")

    def _runs(self, name: str, number: int) -> Iterator[LoadRun]:
        """Yield the runs of a server that is started for each kind of load, from light to heavy.

        A server may learn from its load: BentoML's batcher waits for as long as earlier requests have waited.
        """
        for load in self.budget.loads:
            with self._serve(name, replace(self.options, noop=load is LoadName.NOOP)) as client:
                turn = Turn(name, number, client, self.budget.duration_s)
                if load is not LoadName.NOOP:
                    self.comparison.pixels.setdefault(name, turn.pixels())
                if load is LoadName.CLOSED:
                    yield from map(turn.closed, CALLERS)
                elif load is LoadName.NOOP:
                    yield from map(turn.noop, NOOP_CALLERS)
                else:
                    yield turn.alone()
                    yield from (turn.mixed(rate, self.num_labels) for rate in self.comparison.offered_rates())

    def _serve(self, name: str, options: PipelineOptions) -> AbstractContextManager[PeerClient]:
        return serve_ours(options) if name == OURS else serve_peer(name, self.pythons[name], options)


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
