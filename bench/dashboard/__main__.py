"""Check of the Grafana dashboard: its values against what the load generator counted.

    python -m bench.dashboard

starts two servers and two workers with both shipped models on one Valkey, and a Prometheus that scrapes them; sends
a mixed load to both servers (images of several sizes, streams, deadlines that cannot be met, invalid requests, unknown
keys, a burst that is refused); then runs every query of the dashboard. Prints a row per series: none may be empty,
except those of GPUs on a machine without, and those that the load generator counts too must agree within 2 %. Also
draws the dashboard, as docs/images/dashboard.svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.dashboard.expected import NUM_WORKERS, LoadRecord, SeriesCheck, check_series
from bench.dashboard.load import num_unknown_keys, send_load, write_keys
from bench.dashboard.picture import Curve, PanelPicture, picture
from bench.dashboard.queries import BOARD, PrometheusClient, queries_of, read_board
from bench.local_stack import SCRAPE_S, embedded_redis_url, free_port, local_service, prometheus, until_idle

MAX_QUEUED_SAMPLES = 64  # of one model
RATE_WINDOW_S = 8.0  # of the picture
IMAGE = Path(__file__).parents[2] / "docs" / "images" / "dashboard.svg"
MODEL_REPO = Path(__file__).parents[2] / "model_repo"


def run(arguments: argparse.Namespace, folder: Path) -> tuple[LoadRecord, list[SeriesCheck], str]:
    worker_port = free_port(NUM_WORKERS)
    settings = {
        "MSF_MODEL_REPO": str(MODEL_REPO),
        "MSF_THREADS": "1",
        "MSF_SLOTS": "16",  # few, so that jobs queue
        "MSF_WORKER_METRICS_PORT": str(worker_port),
        "MSF_MAX_QUEUED_SAMPLES": str(MAX_QUEUED_SAMPLES),
        "MSF_API_KEYS_FILE": str(write_keys(folder)),
    }
    folders = [folder / name for name in ("first", "second", "prometheus")]
    for subfolder in folders:
        subfolder.mkdir()
    with local_service(folders[0], MSF_WORKERS=str(NUM_WORKERS), **settings) as first:
        redis_url = embedded_redis_url(folders[0])
        with local_service(folders[1], MSF_REDIS_URL=redis_url, MSF_WORKERS="0", **settings) as second:
            urls = [first.url, second.url]
            targets = {
                "server": [url.removeprefix("http://") for url in urls],
                "worker": [f"127.0.0.1:{worker_port + number}" for number in range(NUM_WORKERS)],
            }
            rate_per_s = {"fashion-mnist": arguments.rate * 0.75, "emoji": arguments.rate * 0.25}
            with prometheus(folders[2], targets) as prometheus_url:
                record = record_load(urls, arguments.seconds, rate_per_s)
                client = PrometheusClient(prometheus_url)
                return record, check_series(client, read_board(), record), draw(client, record)


def record_load(urls: Sequence[str], duration_s: float, rate_per_s: Mapping[str, float]) -> LoadRecord:
    time.sleep(5 * SCRAPE_S)  # every counter is scraped at 0
    started_at = time.time()
    results = asyncio.run(send_load(urls, duration_s, rate_per_s))
    ended_at = time.time()
    until_idle(urls[0])
    time.sleep(3 * SCRAPE_S)  # every counter is scraped at its final value
    queried_at = time.time()
    window_s = round(queried_at - started_at + 5 * SCRAPE_S)
    return LoadRecord(results, num_unknown_keys(duration_s), started_at, ended_at, queried_at, window_s)


def draw(client: PrometheusClient, record: LoadRecord) -> str:
    """Draw the panels outside of collapsed rows, from the start of the load to the moment of its highest demand."""
    panels: list[dict[str, Any]] = [
        panel for panel in json.loads(BOARD.read_text())["panels"] if not panel.get("collapsed")
    ]
    rows = [(panel["title"], panel["gridPos"]["y"]) for panel in panels if panel["type"] == "row"]
    pictures = []
    for panel in panels:
        series = [
            Curve(
                query.series_name(one.labels) or panel["title"],
                [(round(time_s - record.started_at, 1), value) for time_s, value in one.points],
            )
            for query in queries_of(panel)
            for one in client.between(query.over(RATE_WINDOW_S), record.started_at, record.ended_at)
            if any(value for _, value in one.points) or panel["type"] == "stat"
        ]
        if panel["type"] != "row":
            pictures.append(PanelPicture(panel, series))
    return picture(rows, pictures, record.ended_at - record.started_at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the load (default: 60)")
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second (default: 6)")
    parser.add_argument("--image", type=Path, default=IMAGE, help="file of the picture")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msf-") as folder:
        record, checks, image = run(arguments, Path(folder))
    arguments.image.write_text(image)
    outcomes = Counter(result.outcome.value for result in record.all_results)
    print(f"{outcomes.total()} requests in {record.ended_at - record.started_at:.0f} s: {dict(outcomes)}\n")
    head = ["panel", "series", "Prometheus", "load generator", "verdict"]
    print(tabulate([check.row() for check in checks], head, tablefmt="github", floatfmt=".4g", missingval="-"))
    num_counted = sum(check.expected is not None for check in checks)
    num_bad = sum(not check.is_good for check in checks)
    print(f"\n{len(checks)} series, {num_counted} of them also counted by the load generator; {num_bad} bad")
    sys.exit(1 if num_bad else 0)


if __name__ == "__main__":
    main()
