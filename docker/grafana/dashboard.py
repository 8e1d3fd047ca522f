"""The board of an operator's shift, as code: `python docker/grafana/dashboard.py` writes dashboards/msf-overview.json.

What servers read from Redis is the same in each of them and goes by max; everything else is summed over processes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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

FILE = Path(__file__).parent / "dashboards" / "msf-overview.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
WIDTH, HEIGHT, STAT_HEIGHT = 24, 8, 4

OF_MODEL = 'model=~"$model"'
FAILED = 'outcome=~"refused|unavailable|timeout|failed|error"'
IMAGES = 'route="/v1/images/generations"'
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Chart:
    """`queries`: PromQL by legend. A single value is red from `danger_from` on, or below `danger_below`."""

    title: str
    unit: str
    about: str
    queries: Mapping[str, str]
    stacked: bool = False
    danger_from: float | None = None
    danger_below: float | None = None


def total_rate(metric: str, labels: str = "", by: str = "") -> str:
    """Over all processes, each second."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{_and(OF_MODEL, labels)}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    """Of a histogram over all processes."""
    return f"histogram_quantile({share}, {total_rate(f'{metric}_bucket', labels, _and('le', by))})"


def _and(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def by_stage(share: float) -> dict[str, str]:
    return {
        "queue": quantile(share, "msf_queue_seconds"),
        "{{stage}}": quantile(share, "msf_stage_seconds", by="stage"),
        "encode": quantile(share, "msf_encode_seconds"),
    }


def shared(metric: str) -> str:
    """Of a model, read from Redis by every server."""
    return f"sum (max by (model, version) ({metric}{{{OF_MODEL}}}))"


DEMAND = total_rate("msf_steps_demanded_total")
SUPPLY = f"sum(msf_steps_available_per_second{{{OF_MODEL}}})"
OLDEST = f"max(msf_queue_oldest_seconds{{{OF_MODEL}}})"
CAPACITY_LEFT = f"1 - {DEMAND} / {SUPPLY}"

NOW = [
    Chart("Requests", "reqps", "Answered, whatever the outcome.", {"": total_rate("msf_requests_total")}),
    Chart(
        "Failed or refused",
        "percentunit",
        "Share of requests whose caller got no image through no fault of theirs.",
        {"": f"{total_rate('msf_requests_total', FAILED)} / {total_rate('msf_requests_total')}"},
        danger_from=0.01,
    ),
    Chart(
        "Latency, p95",
        "s",
        "Of requests that wait for their images and get them.",
        {"": quantile(0.95, "msf_request_seconds", f'{IMAGES}, outcome="succeeded"')},
        danger_from=5.0,
    ),
    Chart("Oldest job in the queue", "s", "What to scale on.", {"": OLDEST}, danger_from=10.0),
    Chart("Workers", "none", "With a recent heartbeat.", {"": "max (msf_workers)"}),
    Chart(
        "Capacity left", "percentunit", "1 - sample steps demanded / available.", {"": CAPACITY_LEFT}, danger_below=0.1
    ),
]

ROWS: dict[str, list[Chart]] = {
    "Traffic": [
        Chart(
            "Requests by outcome",
            "reqps",
            "All routes that make or show images.",
            {"{{outcome}}": total_rate("msf_requests_total", by="outcome")},
            stacked=True,
        ),
        Chart(
            "Images returned",
            "none",
            "Each second, to callers who waited; cached: made for an earlier request.",
            {"{{source}}": total_rate("msf_images_total", by="source")},
            stacked=True,
        ),
        Chart(
            "Latency of images",
            "s",
            "Requests that wait for their images and get them, in the server.",
            {
                name: quantile(share, "msf_request_seconds", f'{IMAGES}, outcome="succeeded"')
                for name, share in QUANTILES.items()
            },
        ),
    ],
    "Where a job's time goes": [
        Chart(
            f"Time by stage, {name}",
            "s",
            "Of jobs that workers finished: wall time of the step batches they rode "
            "in, so a job's stages do not add up to its latency.",
            by_stage(share),
        )
        for name, share in QUANTILES.items()
    ],
    "Queue": [
        Chart(
            "Jobs",
            "none",
            "Queued for a worker, and held by workers.",
            {"queued": shared("msf_jobs_queued"), "running": shared("msf_jobs_running")},
            stacked=True,
        ),
        Chart("Age of the oldest queued job", "s", "Rises while demand exceeds what workers can do.", {"age": OLDEST}),
        Chart(
            "Deadlines missed",
            "none",
            "Jobs each second that were dropped as they could not end in time: still queued, or under way.",
            {
                "queued": "sum (rate(msf_jobs_expired_queued_total[$__rate_interval]))",
                "under way": total_rate("msf_worker_jobs_total", 'outcome="expired"'),
            },
            stacked=True,
        ),
    ],
    "Batching": [
        Chart(
            "Samples in a step batch",
            "none",
            "Mean.",
            {
                "{{stage}}": f"{total_rate('msf_step_batch_size_sum', by='stage')} / "
                f"{total_rate('msf_step_batch_size_count', by='stage')}",
            },
        ),
        Chart(
            "Fill",
            "percentunit",
            "Mean share of the computed rows that were samples; the rest is padding.",
            {
                "{{stage}}": f"{total_rate('msf_step_batch_fill_ratio_sum', by='stage')} / "
                f"{total_rate('msf_step_batch_fill_ratio_count', by='stage')}",
            },
        ),
        Chart(
            "Step batches by reason",
            "none",
            "Each second, by why they were dispatched: full, all who could ride, "
            "best for their cost, a deadline, or overdue.",
            {"{{reason}}": total_rate("msf_step_batches_total", by="reason")},
            stacked=True,
        ),
        Chart(
            "Time of a step batch, p95",
            "s",
            "On the device, with what surrounds it.",
            {"{{stage}}": quantile(0.95, "msf_step_batch_seconds", by="stage")},
        ),
    ],
    "Capacity": [
        Chart(
            "Slots",
            "none",
            "Samples that ride or could ride side by side.",
            {
                "in use": f"sum(msf_slots_in_use{{{OF_MODEL}}})",
                "free": f"sum(msf_slots) - sum(msf_slots_in_use{{{OF_MODEL}}})",
            },
            stacked=True,
        ),
        Chart(
            "Sample steps",
            "none",
            "Each second, decodes with them: what admitted jobs ask for, what was made, and "
            "what full batches of default requests could make.",
            {"demanded": DEMAND, "made": total_rate("msf_steps_total"), "available": SUPPLY},
        ),
        Chart(
            "Device busy",
            "percentunit",
            "Share of the time in which a worker's device ran a step batch.",
            {"{{instance}}": total_rate("msf_step_batch_seconds_sum", by="instance")},
        ),
    ],
    "When something dies": [
        Chart(
            "Taken back and given up",
            "none",
            "Jobs each second: reclaimed from lost workers, and poisoned, which killed workers again and again.",
            {
                "reclaimed": "sum (rate(msf_reclaims_total[$__rate_interval]))",
                "poisoned": "sum (rate(msf_jobs_poisoned_total[$__rate_interval]))",
            },
        ),
        Chart(
            "Jobs by how they ended in workers",
            "none",
            "Each second; lost: the lease was, or the job was cancelled; dropped: it had ended elsewhere.",
            {"{{outcome}}": total_rate("msf_worker_jobs_total", by="outcome")},
            stacked=True,
        ),
        Chart(
            "Callers that left, or were not let in",
            "none",
            "Each second. A key that was revoked, or somebody who guesses, shows as invalid_api_key.",
            {
                "left": total_rate("msf_clients_gone_total"),
                "{{code}}": total_rate("msf_requests_denied_total", by="code"),
            },
        ),
    ],
    "Redis": [
        Chart(
            "Round trip",
            "s",
            "Of admissions, and of a call at each scrape.",
            {
                f"{{{{call}}}} {name}": f"histogram_quantile({share}, sum by (le, call) "
                "(rate(msf_redis_round_trip_seconds_bucket[$__rate_interval])))"
                for name, share in {"p50": 0.5, "p99": 0.99}.items()
            },
        ),
        Chart(
            "Memory of Redis",
            "bytes",
            "Used, and maxmemory; 0: unlimited.",
            {"used": "max (msf_redis_memory_bytes)", "limit": "max (msf_redis_memory_limit_bytes)"},
        ),
        Chart(
            "Append-only file", "bytes", "Redis rewrites it when it has doubled.", {"size": "max (msf_redis_aof_bytes)"}
        ),
    ],
    "Processes": [
        Chart(
            "Memory of each process",
            "bytes",
            "Resident.",
            {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"server|worker"}'},
        ),
        Chart(
            "CPU of each process",
            "none",
            "Cores in use.",
            {"{{job}} {{instance}}": 'rate(process_cpu_seconds_total{job=~"server|worker"}[$__rate_interval])'},
        ),
        Chart(
            "Served with",
            "none",
            "Workers by backend and the beginning of their runtime fingerprint: more than one while versions change.",
            {"{{backend}} {{fingerprint}}": f"count by (backend, fingerprint) (msf_worker_info{{{OF_MODEL}}})"},
        ),
    ],
}


def board() -> dashboard.Dashboard:
    model = (
        dashboard.QueryVariable("model")
        .label("Model")
        .query("label_values(msf_steps_demanded_total, model)")
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")  # also what was refused before its model was known
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
    FILE.write_text(encoded())
    print(f"wrote {FILE}", file=sys.stderr)
