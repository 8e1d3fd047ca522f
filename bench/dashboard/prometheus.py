"""A real Prometheus of its own for a benchmark."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

SCRAPE_S = 1.0
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answer:
    """A series: its labels, and (Unix seconds, value) in the order of time, without what is not a number."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Prometheus:
    url: str

    def at(self, promql: str, time_s: float) -> list[Answer]:
        """The value of each series at a time."""
        return self._ask("query", query=promql, time=time_s)

    def between(self, promql: str, start_s: float, end_s: float) -> list[Answer]:
        """The values of each series, one a scrape."""
        return self._ask("query_range", query=promql, start=start_s, end=end_s, step=SCRAPE_S)

    def _ask(self, path: str, **params: str | float) -> list[Answer]:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params).json()
        if answer["status"] != "success":
            raise ValueError(f"{params['query']}: {answer['error']}")
        return [_answer(series) for series in answer["data"]["result"]]


def _answer(series: dict[str, Any]) -> Answer:
    points = series["values"] if "values" in series else [series["value"]]
    numbers = [(float(at), float(value)) for at, value in points]
    return Answer(series["metric"], [(at, value) for at, value in numbers if math.isfinite(value)])


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """Scrape `targets` (host:port by job) every second; starts when all of them are up."""
    path = shutil.which("prometheus")
    if path is None:
        sys.exit("prometheus is not on PATH (Debian: apt install prometheus)")
    jobs = [{"job_name": job, "static_configs": [{"targets": list(its)}]} for job, its in targets.items()]
    config = {"global": {"scrape_interval": f"{SCRAPE_S:g}s"}, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        (
            *(path, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
            *(f"--web.listen-address={address}", "--log.level=warn"),
        )
    )
    try:
        prometheus = Prometheus(f"http://{address}")
        _wait_for(prometheus, sum(map(len, targets.values())))
        yield prometheus
    finally:
        process.terminate()
        process.wait()


def _wait_for(prometheus: Prometheus, num_targets: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            (up,) = prometheus.at("sum(up)", time.time())
            if up.points and up.points[0][1] == num_targets:
                return
        except (httpx.TransportError, ValueError):
            pass  # it is starting, or has scraped nothing yet
        time.sleep(0.2)
    sys.exit("Prometheus did not reach all targets in time")
