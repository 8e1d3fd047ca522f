"""The board in the repository is the one that the code makes, and its queries are of metrics that exist."""

from __future__ import annotations

import promql_parser
import pytest

from bench.dashboard.board.__main__ import encoded
from bench.dashboard.queries import BOARD, PanelQuery, read_board
from tests.system.dashboard_names import metric_names, names_in

QUERIES = read_board()


def test_the_board_is_up_to_date() -> None:
    assert encoded() == BOARD.read_text(), "run: python -m bench.dashboard.board"


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.panel} {query.legend}")
def test_a_query_is_of_metrics_that_some_process_has(query: PanelQuery) -> None:
    promql = query.over(60)
    promql_parser.parse(promql)
    assert names_in(promql) <= metric_names()
