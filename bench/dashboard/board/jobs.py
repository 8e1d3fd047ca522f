"""Rows about requests, from their arrival to their end."""

from __future__ import annotations

from bench.dashboard.board.chart import (
    DEVICES,
    IMAGES,
    OLDEST,
    QUANTILES,
    WORK_QUEUED,
    Chart,
    by_model,
    by_stage,
    quantile,
    total_rate,
)

TRAFFIC = [
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
]

TIME_PER_JOB = [
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
]

QUEUE = [
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
]
