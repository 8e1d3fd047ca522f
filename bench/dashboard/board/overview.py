"""The first row: is anything wrong now?"""

from __future__ import annotations

from bench.dashboard.board.chart import (
    DEVICES,
    DEVICES_NEEDED,
    IMAGES,
    OLDEST,
    WORK_QUEUED,
    Chart,
    quantile,
    total_rate,
)

FAILED = 'outcome=~"refused|unavailable|timeout|failed|error"'

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
