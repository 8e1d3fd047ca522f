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
GPU = "GPU (with nvidia-ml-py)"
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


def by_model(metric: str) -> str:
    """Return the PromQL of a value by model that every server reads from Redis."""
    return f"sum by (model) (max by (model, version) ({metric}{{{OF_MODEL}}}))"


def mean(metric: str, by: str) -> str:
    """Return the PromQL of a histogram's mean over all processes."""
    return f"{total_rate(f'{metric}_sum', by=by)} / {total_rate(f'{metric}_count', by=by)}"


# What each model could do, had it the devices to itself, cannot be added up; the devices that its work needs can.
STEPS_PER_S = "avg by (model, version) (msf_steps_available_per_second)"
DEVICES_NEEDED = f"sum by (model, version) (rate(msf_steps_demanded_total[$__rate_interval])) / {STEPS_PER_S}"
WORK_QUEUED = f"max by (model, version) (msf_steps_queued) / {STEPS_PER_S}"
DEVICES = "scalar(max(msf_workers))"
OLDEST = f"max by (model) (msf_queue_oldest_seconds{{{OF_MODEL}}})"

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
        "First preview, p95",
        "s",
        "Streaming requests: time until there is something to see.",
        {"": quantile(0.95, "msf_first_preview_seconds")},
        danger_from=2.0,
    ),
    Chart("Oldest queued job", "s", "Age of the oldest queued job.", {"": f"max({OLDEST})"}, danger_from=10.0),
    Chart(
        "Work queued",
        "s",
        "Seconds that the workers need for the queued jobs of all models; scale on this.",
        {"": f"sum({WORK_QUEUED}) / {DEVICES}"},
        danger_from=10.0,
    ),
    Chart(
        "Capacity left",
        "percentunit",
        "1 - devices needed for the demand of all models / workers. Below 0 the queue grows.",
        {"": f"1 - sum({DEVICES_NEEDED}) / {DEVICES}"},
        danger_below=0.1,
    ),
    Chart("Workers", "none", "Workers with a recent heartbeat.", {"": "max (msf_workers)"}, danger_below=1.0),
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
            {"{{model}} {{source}}": total_rate("msf_images_total", by="model, source")},
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
        Chart(
            "Time to first preview",
            "s",
            "Streaming requests, from their arrival to the first partial image.",
            {name: quantile(share, "msf_first_preview_seconds") for name, share in QUANTILES.items()},
        ),
    ],
    "Time per job": [
        *(
            Chart(
                f"Time by stage, {name}",
                "s",
                "Finished jobs: wall time of the step batches that contained them, "
                "so a job's stages do not add up to its latency.",
                by_stage(share),
            )
            for name, share in QUANTILES.items()
        ),
        Chart(
            "Queue wait, p95",
            "s",
            "Finished jobs, by priority class and by the weight of their tenant.",
            {"{{priority}}, weight {{weight}}": quantile(0.95, "msf_queue_seconds", by="priority, weight")},
        ),
    ],
    "Queue": [
        Chart(
            "Jobs",
            "none",
            "Queued jobs, and jobs held by workers.",
            {"{{model}} queued": by_model("msf_jobs_queued"), "{{model}} running": by_model("msf_jobs_running")},
            stacked=True,
        ),
        Chart("Age of the oldest queued job", "s", "Rises while demand exceeds the capacity.", {"{{model}}": OLDEST}),
        Chart(
            "Seconds of work",
            "s",
            "Device time of the queued jobs, over the workers, and of what workers hold already (about a second).",
            {
                "{{model}} queued": f"sum by (model) ({WORK_QUEUED}) / {DEVICES}",
                "held": "avg(msf_work_held_seconds)",
            },
            stacked=True,
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
    "Devices": [
        Chart(
            "Capacity used",
            "percentunit",
            "Devices that the demand of each model needs with full batches of its default requests, over the workers. "
            "Above 100 % in all, the queue grows.",
            {"{{model}}": f"sum by (model) ({DEVICES_NEEDED}) / {DEVICES}"},
            stacked=True,
        ),
        Chart(
            "Device time by model",
            "percentunit",
            "Share of the workers' time in which they computed step batches of each model. All models share it.",
            {"{{model}}": f"sum by (model) (rate(msf_step_batch_seconds_sum[$__rate_interval])) / {DEVICES}"},
            stacked=True,
        ),
        Chart(
            "Device busy",
            "percentunit",
            "Share of time in which a worker's device computed; the rest is a wait for work or for the host.",
            {"{{instance}}": "sum by (instance) (rate(msf_device_busy_seconds_total[$__rate_interval]))"},
        ),
        Chart(
            "Host work",
            "percentunit",
            "Share of time in which the thread that drives a device chooses, launches and finishes step batches, mean "
            "of the workers. Choosing and finishing overlap with the device's work.",
            {"{{part}}": "avg by (part) (rate(msf_host_seconds_total[$__rate_interval]))"},
            stacked=True,
        ),
    ],
    "Steps": [
        Chart(
            "Sample steps demanded",
            "none",
            "Per second, by admitted jobs, decodes included.",
            {"{{model}}": total_rate("msf_steps_demanded_total", by="model")},
            stacked=True,
        ),
        Chart(
            "Sample steps executed",
            "none",
            "Per second, decodes included.",
            {"{{model}}": total_rate("msf_steps_total", by="model")},
            stacked=True,
        ),
        Chart(
            "Cost of a sample step",
            "s",
            "Device time of a step of each model's default request in full batches, mean of the workers.",
            {"{{model}} {{version}}": f"1 / avg by (model, version) (msf_steps_available_per_second{{{OF_MODEL}}})"},
        ),
        Chart(
            "Slots in use",
            "percentunit",
            "Samples whose state is on a device, over those that fit there. Each model has slots of its own.",
            {
                "{{model}}": f"sum by (model) (msf_slots_in_use{{{OF_MODEL}}}) "
                f"/ sum by (model) (msf_slots{{{OF_MODEL}}})"
            },
        ),
    ],
    "Batching": [
        Chart(
            "Samples per step batch",
            "none",
            "Mean.",
            {"{{model}} {{stage}}": mean("msf_step_batch_size", "model, stage")},
        ),
        Chart(
            "Step batch fill",
            "percentunit",
            "Mean share of computed rows that are in use; the rest is padding. A guided sample takes two.",
            {"{{model}} {{stage}}": mean("msf_step_batch_fill_ratio", "model, stage")},
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
            {"{{model}} {{stage}}": quantile(0.95, "msf_step_batch_seconds", by="model, stage")},
        ),
    ],
    "Models and jobs": [
        Chart(
            "Images per job",
            "none",
            "Mean of admitted jobs.",
            {"{{model}}": mean("msf_job_samples", "model")},
        ),
        Chart(
            "Steps per job",
            "none",
            "Median and 95th percentile of the steps that admitted jobs ask for.",
            {
                f"{{{{model}}}} {name}": quantile(share, "msf_job_steps", by="model")
                for name, share in {"p50": 0.5, "p95": 0.95}.items()
            },
        ),
        Chart(
            "Time to load a version",
            "s",
            "The slowest worker's last load; compiling: the part of it that takes no time once plans are cached.",
            {
                "{{model}} {{version}}": f"max by (model, version) (msf_model_load_seconds{{{OF_MODEL}}})",
                "{{model}} {{version}} compiling": f"max by (model, version) (msf_plan_build_seconds{{{OF_MODEL}}})",
            },
        ),
        Chart(
            "Workers by runtime",
            "none",
            "Workers by backend and start of runtime fingerprint; more than one during a rollout.",
            {
                "{{model}} {{backend}} {{fingerprint}}": "count by (model, backend, fingerprint) "
                f"(msf_worker_info{{{OF_MODEL}}})"
            },
        ),
    ],
    "Callers": [
        Chart(
            "Sample steps by API key",
            "none",
            "Per second, of admitted jobs; keys after the first hundred count as other.",
            {"{{key}}": "topk(10, sum by (key) (rate(msf_key_sample_steps_total[$__rate_interval])))"},
            stacked=True,
        ),
        Chart(
            "Requests by API key",
            "reqps",
            "Keys and outcomes with most requests.",
            {"{{key}} {{outcome}}": "topk(10, sum by (key, outcome) (rate(msf_key_requests_total[$__rate_interval])))"},
            stacked=True,
        ),
        Chart(
            "Disconnected and rejected callers",
            "none",
            "Per second. A revoked or guessed key counts as invalid_api_key. Rejected requests belong to no model.",
            {
                "disconnected": total_rate("msf_clients_gone_total"),
                "{{code}}": "sum by (code) (rate(msf_requests_denied_total[$__rate_interval]))",
            },
        ),
        Chart(
            "Webhooks",
            "none",
            "Attempts per second; failed: given up after the last retry.",
            {"{{outcome}}": "sum by (outcome) (rate(msf_webhooks_total[$__rate_interval]))"},
            stacked=True,
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
            "Refused versions",
            "none",
            "Versions in the model repository that a worker cannot serve; the repository index has the reason.",
            {"versions": "count(max by (model, version) (msf_model_version_refused) > 0) or vector(0)"},
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
            "Processes by release",
            "none",
            "More than one release during a rollout.",
            {"{{job}} {{version}}": "count by (job, version) (msf_build_info)"},
        ),
    ],
    GPU: [
        Chart(
            "GPU memory",
            "bytes",
            "In use by any process, and in all.",
            {"{{instance}} used": "msf_gpu_memory_used_bytes", "{{instance}} total": "msf_gpu_memory_bytes"},
        ),
        Chart("GPU power", "watt", "Power that each GPU draws.", {"{{instance}}": "msf_gpu_power_watts"}),
        Chart(
            "Energy per image",
            "joule",
            "Energy of all GPUs over the images generated for callers that waited.",
            {
                "all models": "sum(rate(msf_gpu_energy_joules_total[$__rate_interval])) "
                '/ sum(rate(msf_images_total{source="made"}[$__rate_interval]))'
            },
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
        row = dashboard.Row(title)
        panels = [_time_series(chart, WIDTH // len(charts)) for chart in charts]
        if title == GPU:  # a collapsed row holds its panels
            for panel in panels:
                row.with_panel(panel)
            built.with_row(row.collapsed(True))
            continue
        built.with_row(row)
        for panel in panels:
            built.with_panel(panel)
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
