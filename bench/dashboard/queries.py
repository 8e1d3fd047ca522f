"""The queries of Grafana's board, as Prometheus is to be asked for them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCKER = Path(__file__).parents[2] / "docker"
BOARD = DOCKER / "grafana" / "dashboards" / "msf-overview.json"


@dataclass(frozen=True)
class Query:
    """One query of one panel; `legend` tells what each of its answers is called."""

    panel: str
    legend: str
    promql: str

    def over(self, window_s: float) -> str:
        """As Grafana asks when all models are chosen and rates are taken over `window_s`."""
        return self.promql.replace("$__rate_interval", f"{window_s:.0f}s").replace("$model", ".*")

    def name(self, labels: dict[str, str]) -> str:
        """What the answer with these labels is called."""
        shown = self.legend
        for label, value in labels.items():
            shown = shown.replace(f"{{{{{label}}}}}", value)
        return shown


def read_board(file: Path = BOARD) -> list[Query]:
    """Every query of the board, in its order."""
    panels = json.loads(file.read_text())["panels"]
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in _flat(panels)
        for target in panel.get("targets", ())
    ]


def _flat(panels: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows may hold their panels."""
    for panel in panels:
        yield panel
        yield from _flat(panel.get("panels") or ())
