"""Charts of the dashboard, and PromQL that several of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OF_MODEL = 'model=~"$model"'
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
