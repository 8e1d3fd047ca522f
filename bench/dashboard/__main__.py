"""Check of the Grafana dashboard: its values against what the load generator counted.

    python -m bench.dashboard

starts two servers and two workers on one Valkey, and a Prometheus that scrapes them; sends a mixed load to both servers
(images of several sizes, deadlines that cannot be met, invalid requests, a refused burst); then runs every query
of the dashboard. Prints a row per series: none may be empty, and those that the load generator counts too must agree
within 2 %. Also plots the panels over time, as docs/images/dashboard.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from bench.dashboard.expected import LoadRecord, SeriesCheck, check_series
from bench.dashboard.queries import PanelQuery, PrometheusClient, read_board
from bench.local_stack import SCRAPE_S, embedded_redis_url, free_port, local_service, prometheus, until_idle
from msf_cli.load.arrivals import bursty
from msf_cli.load.chart import Panel, chart
from msf_cli.load.generator import LoadClient, open_loop
from msf_cli.load.mix import Kind, Mix, PlannedRequest, Weighted, plan_load
from msf_cli.load.results import LoadTally, RequestResult

MIX = Mix(num_steps=Weighted(((4, 3.0), (20, 5.0))), num_samples=Weighted(((1, 4.0), (4, 1.0))))
HOPELESS = Kind(num_steps=100, num_samples=8)  # cannot end within DEADLINE_S under this load
DEADLINE_S = 2.0
BURST_SIZE = 40  # requests of 4 samples at once: more than MAX_QUEUED_SAMPLES
MAX_QUEUED_SAMPLES = 64
NUM_LABELS = 10
PLOT_WINDOW_S = 8.0
PLOT = Path(__file__).parents[2] / "docs" / "images" / "dashboard.svg"
PLOTTED_UNITS = {
    "Requests by outcome": "requests/s",
    "Latency of images": "s",
    "Time by stage, p95": "s",
    "Age of the oldest queued job": "s",
    "Samples per step batch": "",
    "Step batches by reason": "batches/s",
    "Slots": "",
    "Sample steps": "steps/s",
    "Device busy": "",
}


async def send_load(urls: Sequence[str], duration_s: float, rate_per_s: float) -> list[RequestResult]:
    """Send all kinds of requests at the same time, to the servers in turn."""
    tally = LoadTally()
    mixed = plan_load(bursty, rate_per_s, duration_s, MIX, NUM_LABELS, seed=0)
    hopeless = [PlannedRequest(due_s, HOPELESS, 0, int(due_s)) for due_s in range(5, int(duration_s), 5)]
    invalid = [PlannedRequest(due_s + 0.5, Kind(num_steps=5), 0, 0) for due_s in range(0, int(duration_s), 4)]
    burst = [PlannedRequest(duration_s, Kind(num_steps=20, num_samples=4), 0, seed) for seed in range(BURST_SIZE)]
    streams: list[tuple[dict[str, object], list[PlannedRequest]]] = [
        ({}, mixed + burst),
        ({"timeout_s": DEADLINE_S}, hopeless),
        ({"num_stepz": 1}, invalid),
    ]

    async def send(url: str, body: dict[str, object], requests: Sequence[PlannedRequest]) -> None:
        async with LoadClient(url, body=body) as client:
            await open_loop(client, requests, tally)

    async with asyncio.TaskGroup() as group:
        for body, requests in streams:
            for place, url in enumerate(urls):
                group.create_task(send(url, body, requests[place :: len(urls)]))
    return tally.results


def run(arguments: argparse.Namespace, folder: Path) -> tuple[LoadRecord, list[SeriesCheck], list[Panel]]:
    worker_port = free_port(2)
    settings = {
        "MSF_THREADS": "1",
        "MSF_SLOTS": "8",  # few, so that jobs queue
        "MSF_WORKER_METRICS_PORT": str(worker_port),
        "MSF_MAX_QUEUED_SAMPLES": str(MAX_QUEUED_SAMPLES),
    }
    folders = [folder / name for name in ("first", "second", "prometheus")]
    for subfolder in folders:
        subfolder.mkdir()
    with local_service(folders[0], MSF_WORKERS="2", **settings) as first:
        redis_url = embedded_redis_url(folders[0])
        with local_service(folders[1], MSF_REDIS_URL=redis_url, MSF_WORKERS="0", **settings) as second:
            urls = [first.url, second.url]
            targets = {
                "server": [url.removeprefix("http://") for url in urls],
                "worker": [f"127.0.0.1:{worker_port + number}" for number in range(2)],
            }
            with prometheus(folders[2], targets) as prometheus_url:
                record = record_load(urls, arguments.seconds, arguments.rate)
                client, queries = PrometheusClient(prometheus_url), read_board()
                return record, check_series(client, queries, record), plot_panels(client, queries, record)


def record_load(urls: Sequence[str], duration_s: float, rate_per_s: float) -> LoadRecord:
    time.sleep(5 * SCRAPE_S)  # every counter is scraped at 0
    started_at = time.time()
    results = asyncio.run(send_load(urls, duration_s, rate_per_s))
    ended_at = time.time()
    until_idle(urls[0])
    time.sleep(3 * SCRAPE_S)  # every counter is scraped at its final value
    queried_at = time.time()
    return LoadRecord(results, started_at, ended_at, queried_at, round(queried_at - started_at + 5 * SCRAPE_S))


def plot_panels(client: PrometheusClient, queries: Sequence[PanelQuery], record: LoadRecord) -> list[Panel]:
    panels = []
    for title, unit in PLOTTED_UNITS.items():
        lines = {}
        for query in queries:
            if query.panel == title:
                for series in client.between(query.over(PLOT_WINDOW_S), record.started_at, record.queried_at):
                    points = [(round(time_s - record.started_at, 1), value) for time_s, value in series.points]
                    if any(value for _, value in points):
                        lines[query.series_name(series.labels)] = points
        panels.append(Panel(f"{title}{unit and f', {unit}'}", "seconds of load", lines, "{:g}".format, markers=False))
    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the load (default: 60)")
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second (default: 6)")
    parser.add_argument("--plot", type=Path, default=PLOT, help="file of the plot")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msf-") as folder:
        record, checks, panels = run(arguments, Path(folder))
    arguments.plot.write_text(chart(panels, columns=3))
    outcomes = Counter(result.outcome.value for result in record.results)
    print(f"{len(record.results)} requests in {record.ended_at - record.started_at:.0f} s: {dict(outcomes)}\n")
    head = ["panel", "series", "Prometheus", "load generator", "verdict"]
    print(tabulate([check.row() for check in checks], head, tablefmt="github", floatfmt=".4g", missingval="-"))
    num_counted = sum(check.expected is not None for check in checks)
    num_bad = sum(not check.is_good for check in checks)
    print(f"\n{len(checks)} series, {num_counted} of them also counted by the load generator; {num_bad} bad")
    sys.exit(1 if num_bad else 0)


if __name__ == "__main__":
    main()
