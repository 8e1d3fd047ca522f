"""The board in the repository is the one that the code makes, and Prometheus can read its queries."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from msf_serve.bench.board import GRAFANA, Query, read_board
from msf_serve.engine.backends import BACKENDS

FILE = GRAFANA / "dashboards" / "msf-overview.json"
QUERIES = read_board(FILE)


def test_the_board_is_up_to_date() -> None:
    code = runpy.run_path(str(GRAFANA / "dashboard.py"))
    assert code["encoded"]() == FILE.read_text(), "run: python docker/grafana/dashboard.py"
