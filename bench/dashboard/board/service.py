"""Rows about models, callers, failures and processes."""

from __future__ import annotations

from bench.dashboard.board.chart import OF_MODEL, Chart, mean, quantile, total_rate

MODELS_AND_JOBS = [
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
]

CALLERS = [
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
]

FAILURES = [
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
]

REDIS = [
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
    Chart("Append-only file", "bytes", "Redis rewrites it once it has doubled.", {"size": "max (msf_redis_aof_bytes)"}),
]

PROCESSES = [
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
]
