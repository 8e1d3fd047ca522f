"""Rows about what the workers' devices do."""

from __future__ import annotations

from bench.dashboard.board.chart import DEVICES, DEVICES_NEEDED, OF_MODEL, Chart, mean, quantile, total_rate

WORKERS = [
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
]

STEPS = [
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
        {"{{model}}": f"sum by (model) (msf_slots_in_use{{{OF_MODEL}}}) / sum by (model) (msf_slots{{{OF_MODEL}}})"},
    ),
]

BATCHING = [
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
]

GPU = [
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
]
