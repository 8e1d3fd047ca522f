"""`make dashboard-test`: does the board show the truth?

Starts two servers and two workers on one Valkey, and a real Prometheus that scrapes them; sends a mixed load to both
servers (images of several sizes, deadlines that cannot be met, invalid requests, and a burst that is refused); then
asks Prometheus every query of Grafana's board. None may be empty, and what the load generator counted too must agree
within 2 %. Quantiles of what servers tell in Server-Timing are computed anew from every answer, in the histograms'
buckets.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.dashboard.expected import Check, Loaded, checks
from bench.dashboard.prometheus import SCRAPE_S, Prometheus, running_prometheus
from bench.dashboard.queries import Query, read_board
from bench.local_stack import running_service, until_idle
from msf_cli.load.arrivals import bursty
from msf_cli.load.chart import Panel, chart
from msf_cli.load.generator import LoadClient, open_loop
from msf_cli.load.mix import Kind, Mix, PlannedRequest, Weighted, plan_load
from msf_cli.load.results import LoadTally, RequestResult

MIX = Mix(num_steps=Weighted(((4, 3.0), (20, 5.0))), num_samples=Weighted(((1, 4.0), (4, 1.0))))
HOPELESS = Kind(num_steps=100, num_samples=8)  # within DEADLINE_S, beside the rest
DEADLINE_S = 2.0
BURST = 40  # requests of 4 samples at once, beyond what may wait
MAX_QUEUED_SAMPLES = 64
NUM_LABELS = 10
PLOT_WINDOW_S = 8.0
PLOT = Path(__file__).parents[2] / "docs" / "images" / "dashboard.svg"
PLOTTED = {
    "Requests by outcome": "requests/s",
    "Latency of images": "s",
    "Time by stage, p95": "s",
    "Age of the oldest queued job": "s",
    "Samples in a step batch": "",
    "Step batches by reason": "batches/s",
    "Slots": "",
    "Sample steps": "steps/s",
    "Device busy": "",
}


async def load(urls: Sequence[str], duration_s: float, rate: float) -> list[RequestResult]:
    """Everything at once, to the servers in turns."""
    tally = LoadTally()
    planned = plan_load(bursty, rate, duration_s, MIX, NUM_LABELS, seed=0)
    hopeless = [PlannedRequest(at, HOPELESS, 0, int(at)) for at in range(5, int(duration_s), 5)]
    invalid = [PlannedRequest(at + 0.5, Kind(num_steps=5), 0, 0) for at in range(0, int(duration_s), 4)]
    burst = [PlannedRequest(duration_s, Kind(num_steps=20, num_samples=4), 0, seed) for seed in range(BURST)]
    bodies: list[tuple[dict[str, object], list[PlannedRequest]]] = [
        ({}, planned + burst),
        ({"timeout_s": DEADLINE_S}, hopeless),
        ({"num_stepz": 1}, invalid),
    ]
    async with asyncio.TaskGroup() as group:
        for body, requests in bodies:
            for turn, url in enumerate(urls):
                group.create_task(_send(url, body, requests[turn :: len(urls)], tally))
    return tally.results


async def _send(url: str, body: dict[str, object], requests: Sequence[PlannedRequest], tally: LoadTally) -> None:
    async with LoadClient(url, body=body) as client:
        await open_loop(client, requests, tally)


def run(arguments: argparse.Namespace, folder: Path) -> tuple[Loaded, list[Check], list[Panel]]:
    worker_port = _free_ports(2)
    settings = {
        "MSF_WORKERS": "2",
        "MSF_THREADS": "1",
        "MSF_SLOTS": "8",  # few, so that jobs queue
        "MSF_WORKER_METRICS_PORT": str(worker_port),
        "MSF_MAX_QUEUED_SAMPLES": str(MAX_QUEUED_SAMPLES),
    }
    (folder / "valkey").mkdir()
    (folder / "prometheus").mkdir()
    with running_service(folder / "valkey", **settings) as first:
        redis_url = (folder / "valkey" / "owner").read_text()
        with running_service(folder, MSF_REDIS_URL=redis_url, **{**settings, "MSF_WORKERS": "0"}) as second:
            urls = [first.url, second.url]
            targets = {
                "server": [url.removeprefix("http://") for url in urls],
                "worker": [f"127.0.0.1:{worker_port + number}" for number in range(2)],
            }
            with running_prometheus(folder / "prometheus", targets) as prometheus:
                loaded = _load_and_settle(urls, arguments)
                queries = read_board()
                return loaded, checks(prometheus, queries, loaded), plotted(prometheus, queries, loaded)


def _load_and_settle(urls: Sequence[str], arguments: argparse.Namespace) -> Loaded:
    time.sleep(5 * SCRAPE_S)  # so that every counter was seen at 0
    began_at = time.time()
    results = asyncio.run(load(urls, arguments.seconds, arguments.rate))
    ended_at = time.time()
    asyncio.run(until_idle(urls[0]))
    time.sleep(3 * SCRAPE_S)
    asked_at = time.time()
    return Loaded(results, began_at, ended_at, asked_at, round(asked_at - began_at + 5 * SCRAPE_S))


def plotted(prometheus: Prometheus, queries: Sequence[Query], loaded: Loaded) -> list[Panel]:
    panels = []
    for title, unit in PLOTTED.items():
        series = {}
        for query in queries:
            if query.panel == title:
                for answer in prometheus.between(query.over(PLOT_WINDOW_S), loaded.began_at, loaded.asked_at):
                    points = [(round(at - loaded.began_at, 1), value) for at, value in answer.points]
                    if any(value for _, value in points):
                        series[query.name(answer.labels)] = points
        panels.append(Panel(f"{title}{unit and f', {unit}'}", "seconds of load", series, "{:g}".format, markers=False))
    return panels


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nothing listens on."""
    for first in range(21000, 29000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    sys.exit("no free ports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load")
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--plot", type=Path, default=PLOT, help="file of the board's data")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msf-") as folder:
        loaded, found, panels = run(arguments, Path(folder))
    arguments.plot.write_text(chart(panels, columns=3))
    outcomes = Counter(result.outcome.value for result in loaded.results)
    print(f"{len(loaded.results)} requests in {loaded.ended_at - loaded.began_at:.0f} s: {dict(outcomes)}\n")
    print("| panel | series | Prometheus | load generator | verdict |\n|---|---|---|---|---|")
    for check in found:
        print(check.row())
    bad = [check for check in found if not check.is_good]
    agreeing = sum(check.expected is not None for check in found)
    print(f"\n{len(found)} series, {agreeing} of them counted by the load generator too; {len(bad)} bad")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
