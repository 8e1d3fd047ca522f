"""Servers side by side: msf-serve, mosec, LitServe, BentoML and Ray Serve with the same plans, in turns in one run.

    python -m bench.peers [--only closed|noop|mixed] [--peers NAME,...] [--rounds N] [--seconds S]

Each server is started for its turn, measured, and stopped, so that idle ones take nothing from the machine; the order
changes from round to round. A turn has closed loops of 1, 16 and 64 callers, the same with an engine that computes
nothing, and an open loop of the mixed load at rates up to and past what the plans alone can do. Peers run batches of
whole requests. A peer that cannot be installed or started is skipped, and the report says why.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.local_stack import MODEL
from bench.peers.comparison import Comparison
from bench.peers.contenders import PEERS
from bench.peers.installation import InstallationError, install, installed_version
from bench.peers.measurements import WARMUP_S, LoadName
from bench.peers.pipeline import BATCH_DELAY_S, BATCH_SIZE, PipelineOptions
from bench.peers.report import markdown, results_json
from bench.peers.rounds import Budget, Rounds, log
from msf_cli.settings import read_settings
from msf_engine.device import cpu_name
from msf_engine.repository import read_version
from msf_worker.settings import WorkerSettings

LOADS = (LoadName.CLOSED, LoadName.NOOP, LoadName.MIXED)


def pipeline_options() -> PipelineOptions:
    """Return the worker's settings of the environment, with absolute paths: a peer runs in another folder."""
    settings = read_settings()
    fields = {name: getattr(settings, name) for name in WorkerSettings.model_fields}
    fields |= {name: fields[name].resolve() for name in ("model_repo", "cache_dir")}
    return PipelineOptions(MODEL, WorkerSettings.model_validate(fields))


def install_peers(names: Sequence[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the Python of each peer, and why the others could not be installed."""
    pythons, failures = {}, {}
    for name in names:
        try:
            pythons[name] = install(name, folder)
        except InstallationError as error:
            failures[name] = str(error)
            log(f"{name} is skipped: {error}")
    return pythons, failures


def setup(budget: Budget, options: PipelineOptions, pythons: Mapping[str, Path]) -> list[str]:
    versions = ", ".join(f"{name} {installed_version(name, python)}" for name, python in pythons.items())
    return [
        f"{cpu_name()}, {os.cpu_count()} cores for server, engine and client; {options.settings.threads} threads of "
        f"the engine; {time.strftime('%Y-%m-%d')}",
        f"{MODEL}; peers: {versions}; batches of at most {BATCH_SIZE} requests that wait at most "
        f"{1000 * BATCH_DELAY_S:g} ms (BentoML: its own adaptive delay)",
        f"{budget.num_rounds} rounds, {budget.duration_s:g} s per load (closed loops after {WARMUP_S:g} s of warm-up); "
        "each server is started for its turn and runs alone; medians, and ranges over the rounds",
    ]


def peer_names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PEERS):
        raise argparse.ArgumentTypeError(f"unknown peers {', '.join(sorted(unknown))}; allowed: {', '.join(PEERS)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=LoadName, choices=LOADS, help="one of the loads (default: all)")
    parser.add_argument("--peers", type=peer_names, default=list(PEERS), help=f"default: {','.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all servers in turns (default: 3)")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per load (default: 10)")
    parser.add_argument("--folder", type=Path, default=Path(".peers"), help="the peers' environments")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-peers"), help="folder of the report")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stop the servers
    budget = Budget([arguments.only] if arguments.only else LOADS, arguments.rounds, arguments.seconds)
    options = pipeline_options()
    pythons, failures = install_peers(arguments.peers, arguments.folder.absolute())
    log(f"{len(pythons) + 1} servers, about {budget.estimate_s(len(pythons) + 1) / 60:.0f} minutes")
    comparison = Comparison(setup(budget, options, pythons), failures)
    version = read_version(options.settings.model_repo, options.model)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        Rounds(budget, options, version.config.num_classes, pythons, comparison).measure()
    finally:
        (arguments.out / "results.json").write_text(results_json(comparison))
    (arguments.out / "report.md").write_text(markdown(comparison))
    print(markdown(comparison))


if __name__ == "__main__":
    main()
