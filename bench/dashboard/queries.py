"""Queries of the Grafana dashboard, and a client that asks Prometheus for them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.local_stack import SCRAPE_S

DOCKER = Path(__file__).parents[2] / "docker"
BOARD = DOCKER / "grafana" / "dashboards" / "msf-overview.json"


@dataclass(frozen=True)
class PanelQuery:
    """One query of one panel; `legend` is the template of its series' names. An optional one may be empty."""

    panel: str
    legend: str
    promql: str
    is_optional: bool = False

    def over(self, window_s: float) -> str:
        """Return the query as Grafana sends it, for all models, with rates over `window_s`."""
        return self.promql.replace("$__rate_interval", f"{window_s:.0f}s").replace("$model", ".*")

    def series_name(self, labels: dict[str, str]) -> str:
        name = self.legend
        for label, value in labels.items():
            name = name.replace(f"{{{{{label}}}}}", value)
        return name


def read_board(file: Path = BOARD) -> list[PanelQuery]:
    """Return every query of the dashboard in its order; those in a collapsed row are optional."""
    panels = json.loads(file.read_text())["panels"]
    inside = [(panel, True) for row in panels for panel in row.get("panels") or ()]
    return [
        query
        for panel, is_optional in [*((each, False) for each in panels), *inside]
        for query in queries_of(panel, is_optional)
    ]


def queries_of(panel: dict[str, Any], is_optional: bool = False) -> list[PanelQuery]:
    """Return the queries of one panel."""
    return [
        PanelQuery(panel["title"], target["legendFormat"], target["expr"], is_optional)
        for target in panel.get("targets", ())
    ]


@dataclass(frozen=True)
class Series:
    """Labels, and finite values in order of time: (Unix seconds, value)."""

    labels: dict[str, str]
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class PrometheusClient:
    url: str

    def at(self, promql: str, time_s: float) -> list[Series]:
        """Return the value of each series at a time."""
        return self._query("query", query=promql, time=time_s)

    def between(self, promql: str, start_s: float, end_s: float) -> list[Series]:
        """Return the values of each series, one per scrape."""
        return self._query("query_range", query=promql, start=start_s, end=end_s, step=SCRAPE_S)

    def _query(self, path: str, **params: str | float) -> list[Series]:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params).json()
        if answer["status"] != "success":
            raise ValueError(f"{params['query']}: {answer['error']}")
        return [_parse(result) for result in answer["data"]["result"]]


def _parse(result: dict[str, Any]) -> Series:
    pairs = result["values"] if "values" in result else [result["value"]]
    points = [(float(time_s), float(value)) for time_s, value in pairs]
    return Series(result["metric"], [(time_s, value) for time_s, value in points if math.isfinite(value)])
