"""Grafana dashboard for operators, as code.

    python -m bench.dashboard.board

writes docker/grafana/dashboards/msf-overview.json. Series that servers read from Redis are equal in all servers and
aggregated by max; all others are summed over processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

from bench.dashboard.board import devices, jobs, service
from bench.dashboard.board.chart import Chart
from bench.dashboard.board.overview import NOW
from bench.dashboard.queries import BOARD

SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4
ROWS = {
    "Traffic": jobs.TRAFFIC,
    "Time per job": jobs.TIME_PER_JOB,
    "Queue": jobs.QUEUE,
    "Devices": devices.WORKERS,
    "Steps": devices.STEPS,
    "Batching": devices.BATCHING,
    "Models and jobs": service.MODELS_AND_JOBS,
    "Callers": service.CALLERS,
    "Failures": service.FAILURES,
    "Redis": service.REDIS,
    "Processes": service.PROCESSES,
}
COLLAPSED_ROWS = {"GPU (with nvidia-ml-py)": devices.GPU}


def board() -> dashboard.Dashboard:
    model = (
        dashboard.QueryVariable("model")
        .label("Model")
        .query("label_values(msf_steps_demanded_total, model)")
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")  # includes requests that were refused before their model was known
    )
    built = (
        dashboard.Dashboard("msf-serve: overview")
        .uid("msf-overview")
        .tags(["msf-serve"])
        .refresh("10s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(model)
    )
    for chart in NOW:
        built.with_panel(_stat(chart, WIDTH // len(NOW)))
    for title, charts in ROWS.items():
        built.with_row(dashboard.Row(title))
        for chart in charts:
            built.with_panel(_time_series(chart, WIDTH // len(charts)))
    for title, charts in COLLAPSED_ROWS.items():
        row = dashboard.Row(title).collapsed(True)
        for chart in charts:
            row.with_panel(_time_series(chart, WIDTH // len(charts)))
        built.with_row(row)
    return built


def _stat(chart: Chart, width: int) -> stat.Panel:
    panel = stat.Panel().title(chart.title).description(chart.about).unit(chart.unit).datasource(SOURCE)
    panel.height(STAT_HEIGHT).span(width).thresholds(_thresholds(chart))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.with_target(_target(*next(iter(chart.queries.items())), "A"))


def _time_series(chart: Chart, width: int) -> timeseries.Panel:
    panel = timeseries.Panel().title(chart.title).description(chart.about).unit(chart.unit).datasource(SOURCE)
    panel.height(HEIGHT).span(width).min(0).fill_opacity(20 if chart.stacked else 0)
    panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(looks.LegendDisplayMode.LIST)
        .placement(looks.LegendPlacement.BOTTOM)
    )
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    if chart.stacked:
        panel.stacking(common.StackingConfig().mode(looks.StackingMode.NORMAL))
    for place, (legend, query) in enumerate(chart.queries.items()):
        panel.with_target(_target(legend, query, "ABCDEF"[place]))
    return panel


def _target(legend: str, query: str, ref_id: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query).legend_format(legend).ref_id(ref_id)


def _thresholds(chart: Chart) -> dashboard.ThresholdsConfig:
    steps: Sequence[tuple[float | None, str]] = [(None, "green")]
    if chart.danger_from is not None:
        steps = [(None, "green"), (chart.danger_from, "red")]
    elif chart.danger_below is not None:
        steps = [(None, "red"), (chart.danger_below, "green")]
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )


def encoded() -> str:
    return JSONEncoder(sort_keys=True, indent=2).encode(board().build()) + "\n"


if __name__ == "__main__":
    BOARD.write_text(encoded())
    print(f"wrote {BOARD}", file=sys.stderr)
