"""Grafana dashboard for operators, as code: `python docker/grafana/dashboard.py` writes dashboards/msf-overview.json.

Series that servers read from Redis are equal in all servers and aggregated by max; all others are summed over
processes. The file is long because it lists every panel.
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
    """Panel with `queries` (PromQL by legend). A single value is red from `danger_from` up, or below `danger_below`."""

    title: str
    unit: str
    about: str
    queries: Mapping[str, str]
    stacked: bool = False
    danger_from: float | None = None
    danger_below: float | None = None


def total_rate(metric: str, labels: str = "", by: str = "") -> str:
    """Return the PromQL of a rate per second, summed over all processes."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{_join(OF_MODEL, labels)}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str = "", by: str = "") -> str:
    """Return the PromQL of a histogram's quantile over all processes."""
    return f"histogram_quantile({share}, {total_rate(f'{metric}_bucket', labels, _join('le', by))})"


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def by_stage(share: float) -> dict[str, str]:
    return {
        "queue": quantile(share, "msf_queue_seconds"),
        "{{stage}}": quantile(share, "msf_stage_seconds", by="stage"),
        "encode": quantile(share, "msf_encode_seconds"),
    }


def shared(metric: str) -> str:
    """Return the PromQL of a model's value that every server reads from Redis."""
    return f"sum (max by (model, version) ({metric}{{{OF_MODEL}}}))"


DEMAND = total_rate("msf_steps_demanded_total")
SUPPLY = f"sum(msf_steps_available_per_second{{{OF_MODEL}}})"
OLDEST = f"max(msf_queue_oldest_seconds{{{OF_MODEL}}})"
CAPACITY_LEFT = f"1 - {DEMAND} / {SUPPLY}"

NOW = [
    Chart("Requests", "reqps", "Answered requests per second, any outcome.", {"": total_rate("msf_requests_total")}),
    Chart(
        "Failed or refused",
        "percentunit",
        "Share of requests that got no image through no fault of the caller.",
        {"": f"{total_rate('msf_requests_total', FAILED)} / {total_rate('msf_requests_total')}"},
        danger_from=0.01,
    ),
    Chart(
        "Latency, p95",
        "s",
        "Successful requests that wait for their images.",
        {"": quantile(0.95, "msf_request_seconds", f'{IMAGES}, outcome="succeeded"')},
        danger_from=5.0,
    ),
    Chart(
        "Oldest job in the queue",
        "s",
        "Age of the oldest queued job; scale workers on this.",
        {"": OLDEST},
        danger_from=10.0,
    ),
    Chart("Workers", "none", "Workers with a recent heartbeat.", {"": "max (msf_workers)"}),
    Chart(
        "Capacity left", "percentunit", "1 - demanded / available sample steps.", {"": CAPACITY_LEFT}, danger_below=0.1
    ),
]

ROWS: dict[str, list[Chart]] = {
    "Traffic": [
        Chart(
            "Requests by outcome",
            "reqps",
            "All routes that generate or return images.",
            {"{{outcome}}": total_rate("msf_requests_total", by="outcome")},
            stacked=True,
        ),
        Chart(
            "Images returned",
            "none",
            "Per second, to callers that waited; cached: generated for an earlier request.",
            {"{{source}}": total_rate("msf_images_total", by="source")},
            stacked=True,
        ),
        Chart(
            "Latency of images",
            "s",
            "Successful requests that wait for their images, measured in the server.",
            {
                name: quantile(share, "msf_request_seconds", f'{IMAGES}, outcome="succeeded"')
                for name, share in QUANTILES.items()
            },
        ),
    ],
    "Time per job": [
        Chart(
            f"Time by stage, {name}",
            "s",
            "Finished jobs: wall time of the step batches that contained them, "
            "so a job's stages do not add up to its latency.",
            by_stage(share),
        )
        for name, share in QUANTILES.items()
    ],
    "Queue": [
        Chart(
            "Jobs",
            "none",
            "Queued jobs, and jobs held by workers.",
            {"queued": shared("msf_jobs_queued"), "running": shared("msf_jobs_running")},
            stacked=True,
        ),
        Chart(
            "Age of the oldest queued job", "s", "Rises while demand exceeds the workers' capacity.", {"age": OLDEST}
        ),
        Chart(
            "Deadlines missed",
            "none",
            "Jobs per second that were dropped because they could not end in time, while queued or running.",
            {
                "queued": "sum (rate(msf_jobs_expired_queued_total[$__rate_interval]))",
                "running": total_rate("msf_worker_jobs_total", 'outcome="expired"'),
            },
            stacked=True,
        ),
    ],
    "Batching": [
        Chart(
            "Samples per step batch",
            "none",
            "Mean.",
            {
                "{{stage}}": f"{total_rate('msf_step_batch_size_sum', by='stage')} / "
                f"{total_rate('msf_step_batch_size_count', by='stage')}",
            },
        ),
        Chart(
            "Step batch fill",
            "percentunit",
            "Mean share of computed rows that are in use; the rest is padding. A guided sample takes two.",
            {
                "{{stage}}": f"{total_rate('msf_step_batch_fill_ratio_sum', by='stage')} / "
                f"{total_rate('msf_step_batch_fill_ratio_count', by='stage')}",
            },
        ),
        Chart(
            "Step batches by reason",
            "none",
            "Per second, by reason of dispatch: full, all candidates, best for their cost, a deadline, or overdue.",
            {"{{reason}}": total_rate("msf_step_batches_total", by="reason")},
            stacked=True,
        ),
        Chart(
            "Step batch duration, p95",
            "s",
            "Device time.",
            {"{{stage}}": quantile(0.95, "msf_step_batch_seconds", by="stage")},
        ),
    ],
    "Capacity": [
        Chart(
            "Slots",
            "none",
            "Samples whose state is on a device, and room for more.",
            {
                "in use": f"sum(msf_slots_in_use{{{OF_MODEL}}})",
                "free": f"sum(msf_slots) - sum(msf_slots_in_use{{{OF_MODEL}}})",
            },
            stacked=True,
        ),
        Chart(
            "Sample steps",
            "none",
            "Per second, decodes included: demanded by admitted jobs, executed, and available with full batches "
            "of default requests.",
            {"demanded": DEMAND, "executed": total_rate("msf_steps_total"), "available": SUPPLY},
        ),
        Chart(
            "Device busy",
            "percentunit",
            "Share of time in which a worker's device computed; the rest is a wait for work or for the host.",
            {"{{instance}}": "sum by (instance) (rate(msf_device_busy_seconds_total[$__rate_interval]))"},
        ),
        Chart(
            "Host work between step batches",
            "percentunit",
            "Share of time in which the thread that drives a device chooses, launches and finishes step batches. "
            "Choosing and finishing overlap with the device's work.",
            {"{{instance}} {{part}}": "sum by (instance, part) (rate(msf_host_seconds_total[$__rate_interval]))"},
        ),
    ],
    "Failures": [
        Chart(
            "Reclaimed and poisoned jobs",
            "none",
            "Jobs per second: reclaimed from lost workers, and poisoned (given up after repeatedly killing workers).",
            {
                "reclaimed": "sum (rate(msf_reclaims_total[$__rate_interval]))",
                "poisoned": "sum (rate(msf_jobs_poisoned_total[$__rate_interval]))",
            },
        ),
        Chart(
            "Jobs by outcome in workers",
            "none",
            "Per second; lost: the lease expired or the job was cancelled; dropped: the job had ended elsewhere.",
            {"{{outcome}}": total_rate("msf_worker_jobs_total", by="outcome")},
            stacked=True,
        ),
        Chart(
            "Disconnected and rejected callers",
            "none",
            "Per second. A revoked or guessed key counts as invalid_api_key.",
            {
                "disconnected": total_rate("msf_clients_gone_total"),
                "{{code}}": total_rate("msf_requests_denied_total", by="code"),
            },
        ),
    ],
    "Redis": [
        Chart(
            "Redis round trip",
            "s",
            "Admissions, and one call per scrape.",
            {
                f"{{{{call}}}} {name}": f"histogram_quantile({share}, sum by (le, call) "
                "(rate(msf_redis_round_trip_seconds_bucket[$__rate_interval])))"
                for name, share in {"p50": 0.5, "p99": 0.99}.items()
            },
        ),
        Chart(
            "Redis memory",
            "bytes",
            "Used, and maxmemory (0: unlimited).",
            {"used": "max (msf_redis_memory_bytes)", "limit": "max (msf_redis_memory_limit_bytes)"},
        ),
        Chart(
            "Append-only file", "bytes", "Redis rewrites it once it has doubled.", {"size": "max (msf_redis_aof_bytes)"}
        ),
    ],
    "Processes": [
        Chart(
            "Memory by process",
            "bytes",
            "Resident set size.",
            {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"server|worker"}'},
        ),
        Chart(
            "CPU by process",
            "none",
            "Cores in use.",
            {"{{job}} {{instance}}": 'rate(process_cpu_seconds_total{job=~"server|worker"}[$__rate_interval])'},
        ),
        Chart(
            "Workers by runtime",
            "none",
            "Workers by backend and start of runtime fingerprint; more than one during a rollout.",
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
