"""Prometheus metrics of a server process. Labels name registered models only, never a caller's text."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from msf_scheduler.error_codes import ErrorCode
from msf_scheduler.jobs import JobRecord, JobSpec, ModelInfo, ModelKey
from msf_scheduler.process_metrics import BoundedLabel, ProcessMetrics, exemplar
from msf_scheduler.queue import QueueDepth
from msf_scheduler.redis_info import Storage
from msf_server.api_keys import ApiKey
from msf_server.request_log import RequestLog

MODEL = ("model", "version")
OUTCOMES = (
    *("succeeded", "invalid", "refused", "limited", "unavailable"),
    *("timeout", "failed", "cancelled", "client_gone", "error"),
)
OIP_ROUTES = tuple(f"/v2/models/{{model}}{which}/infer" for which in ("", "/versions/{version}"))
WAITING_ROUTES = ("/v1/images/generations", *OIP_ROUTES)  # answer with images
ROUTES = (*WAITING_ROUTES, "/v1/jobs")  # admit jobs
JOB_STEPS = (2, 4, 8, 12, 16, 20, 30, 50, 100, 250, 1000)
JOB_SAMPLES = (1, 2, 4, 8, 16, 32, 64)
MAX_KEYS = 100  # that have series of their own
SHARED = " Read from Redis and equal in every server: aggregate by max."
DENIALS = (
    *(ErrorCode.INVALID_API_KEY, ErrorCode.MISSING_SCOPE, ErrorCode.RATE_LIMIT_EXCEEDED),
    *(ErrorCode.BODY_TOO_LARGE, ErrorCode.BODY_TOO_SLOW),
)


@dataclass(frozen=True)
class SharedState:
    """Values that every server reads from the same Redis at a scrape; `depths` by (model, version)."""

    depths: Mapping[ModelKey, QueueDepth]
    num_workers: int
    storage: Storage
    round_trip_s: float


@dataclass
class JobTotals:
    """Jobs of one model version that callers waited for, since the start; times in milliseconds."""

    last_ended_at: float = 0.0  # Unix seconds
    num_images: int = 0
    num_jobs: int = 0
    num_cached: int = 0  # further jobs, answered with an identical job's result; their time is not counted
    queue_ms: float = 0.0
    stages_ms: float = 0.0
    output_ms: float = 0.0  # decoder and encoder


class Metrics(ProcessMetrics):
    """Metrics of one app. Values that are shared through Redis are gauges, to be aggregated by max."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.count_tasks(loop)
        self.totals: defaultdict[ModelKey, JobTotals] = defaultdict(JobTotals)
        self.requests = self._counter("msf_requests", "Requests by route and outcome", (*MODEL, "route", "outcome"))
        self.request_s = self._histogram(
            "msf_request_seconds",
            "Duration of requests, up to the last byte of the answer",
            (*MODEL, "route", "outcome"),
        )
        self.images = self._counter("msf_images", "Images returned to callers that waited", (*MODEL, "source"))
        self.steps_demanded = self._counter(
            "msf_steps_demanded", "Denoising steps of all samples of admitted jobs, plus one decode per sample", MODEL
        )
        self.job_samples = self._histogram("msf_job_samples", "Samples of an admitted job", MODEL, JOB_SAMPLES)
        self.job_steps = self._histogram("msf_job_steps", "Steps of each sample of an admitted job", MODEL, JOB_STEPS)
        self.first_preview_s = self._histogram(
            "msf_first_preview_seconds", "Time from a streaming request to its first partial image", MODEL
        )
        self._keys = BoundedLabel(MAX_KEYS)
        self.key_requests = self._counter(
            "msf_key_requests",
            "Requests of each API key by outcome; of the keys after the first 100 as other",
            ("key", "outcome"),
        )
        self.key_samples = self._counter("msf_key_samples", "Samples of each API key's admitted jobs", ("key",))
        self.key_steps = self._counter(
            "msf_key_sample_steps", "Sample steps of each API key's admitted jobs, decodes included", ("key",)
        )
        self.clients_gone = self._counter("msf_clients_gone", "Callers that disconnected before their answer", MODEL)
        self.denied = self._counter(
            "msf_requests_denied", "Requests refused before their route, by code of the error", ("code",)
        )
        self.round_trip_s = self._histogram(
            "msf_redis_round_trip_seconds", "Round trips to Redis: admissions, and one per scrape", ("call",)
        )
        self.webhooks = self._counter("msf_webhooks", "Attempts to deliver a webhook, by outcome", ("outcome",))
        for outcome in ("delivered", "retried", "failed"):
            self.webhooks.labels(outcome)
        self.redis_up = self._gauge("msf_redis_up", "Whether Redis answered this scrape")
        self.jobs_queued = self._gauge("msf_jobs_queued", "Jobs waiting for a worker." + SHARED, MODEL)
        self.jobs_running = self._gauge("msf_jobs_running", "Jobs claimed by workers." + SHARED, MODEL)
        self.samples = self._gauge("msf_samples", "Samples of queued and running jobs." + SHARED, MODEL)
        self.steps_queued = self._gauge("msf_steps_queued", "Steps of queued jobs, decodes included." + SHARED, MODEL)
        self.oldest_s = self._gauge("msf_queue_oldest_seconds", "Age of the oldest queued job." + SHARED, MODEL)
        self.workers = self._gauge("msf_workers", "Workers with a recent heartbeat." + SHARED)
        self.memory = self._gauge("msf_redis_memory_bytes", "Memory that Redis uses." + SHARED)
        self.memory_limit = self._gauge("msf_redis_memory_limit_bytes", "Redis's maxmemory; 0: none." + SHARED)
        self.aof_size = self._gauge("msf_redis_aof_bytes", "Size of Redis's append-only file." + SHARED)
        self.aof_ok = self._gauge(
            "msf_redis_aof_ok", "Whether the last write and rewrite of the append-only file succeeded." + SHARED
        )

        for code in DENIALS:
            self.denied.labels(code)
        self._show_requests("", "")

    def observe_request(self, log: RequestLog, route: str, duration_s: float) -> None:
        """Count a request, under no model if it was refused before its model was known."""
        name, version = ("", "") if log.model is None else (log.model.name, log.model.version)
        self.requests.labels(name, version, route, log.outcome).inc()
        self.request_s.labels(name, version, route, log.outcome).observe(duration_s, exemplar(log.trace_id))
        if log.outcome == "client_gone":
            self.clients_gone.labels(name, version).inc()
        if log.api_key is not None:
            self.key_requests.labels(self._keys.of(log.api_key.name), log.outcome).inc()

    def observe_admission(self, spec: JobSpec, key: ApiKey | None) -> None:
        """Count a job whose work is not shared with an earlier one."""
        model, num_steps = (spec.model, spec.version), spec.num_samples * (spec.num_steps + 1)
        self.steps_demanded.labels(*model).inc(num_steps)
        self.job_samples.labels(*model).observe(spec.num_samples)
        self.job_steps.labels(*model).observe(spec.num_steps)
        if key is not None:
            name = self._keys.of(key.name)
            self.key_samples.labels(name).inc(spec.num_samples)
            self.key_steps.labels(name).inc(num_steps)

    def observe_first_preview(self, log: RequestLog) -> None:
        """Count the time that the caller of a stream waited for something to see."""
        assert log.model is not None
        seconds = time.perf_counter() - log.started_at
        self.first_preview_s.labels(log.model.name, log.model.version).observe(seconds, exemplar(log.trace_id))

    def observe_result(self, job: JobRecord, num_images: int) -> None:
        """Count a job that succeeded and its images, which are delivered to a caller that waited."""
        is_cached = job.images_of is not None
        spec, timings = job.spec, job.timings
        self.images.labels(spec.model, spec.version, "cached" if is_cached else "made").inc(num_images)
        totals = self.totals[spec.model, spec.version]
        totals.last_ended_at = time.time()
        if is_cached or timings is None:
            totals.num_cached += 1
            return
        totals.num_jobs += 1
        totals.num_images += num_images
        totals.queue_ms += timings.queue_ms
        totals.stages_ms += timings.base_ms + timings.residual_ms + timings.denoise_ms
        totals.output_ms += timings.decode_ms + timings.encode_ms

    def answered(self, model: ModelInfo, *, succeeded: bool) -> tuple[int, float]:
        """Return the number of image requests that succeeded, or did not, and their total duration in seconds."""
        count = seconds = 0.0
        for sample in next(iter(self.request_s.collect())).samples:
            labels = sample.labels
            if (
                (labels["model"], labels["version"]) == (model.name, model.version)
                and labels["route"] in WAITING_ROUTES
                and (labels["outcome"] == "succeeded") == succeeded
            ):
                count += sample.value if sample.name.endswith("_count") else 0.0
                seconds += sample.value if sample.name.endswith("_sum") else 0.0
        return int(count), seconds

    def show(self, models: Iterable[ModelKey]) -> None:
        """Start the counters of `models` at 0: Prometheus misses the increment with which a counter appears."""
        for model in models:
            self._show_requests(*model)
            for metric in (
                self.steps_demanded,
                self.clients_gone,
                self.job_samples,
                self.job_steps,
                self.first_preview_s,
            ):
                metric.labels(*model)
            for source in ("made", "cached"):
                self.images.labels(*model, source)

    def show_keys(self, keys: Iterable[ApiKey]) -> None:
        """Start the counters of these API keys at 0."""
        for key in keys:
            name = self._keys.of(key.name)
            self.key_samples.labels(name)
            self.key_steps.labels(name)
            for outcome in OUTCOMES:
                self.key_requests.labels(name, outcome)

    def _show_requests(self, *model: str) -> None:
        for route in ROUTES:
            for outcome in OUTCOMES:
                self.requests.labels(*model, route, outcome)
            self.request_s.labels(*model, route, "succeeded")

    def set_shared(self, shared: SharedState | None) -> None:
        """Set the shared gauges; without an answer from Redis, they become absent or NaN instead of stale."""
        self.redis_up.set(shared is not None)
        for gauge in (self.jobs_queued, self.jobs_running, self.steps_queued, self.samples, self.oldest_s):
            gauge.clear()
        for gauge in (self.workers, self.memory, self.memory_limit, self.aof_size, self.aof_ok):
            gauge.set(math.nan)
        if shared is None:
            return
        self.show(shared.depths)
        self.round_trip_s.labels("scrape").observe(shared.round_trip_s)
        for labels, depth in shared.depths.items():
            self.jobs_queued.labels(*labels).set(depth.num_jobs_queued)
            self.jobs_running.labels(*labels).set(depth.num_jobs_running)
            self.samples.labels(*labels).set(depth.num_samples)
            self.steps_queued.labels(*labels).set(depth.num_steps_queued)
            self.oldest_s.labels(*labels).set(depth.oldest_age_s)
        self.workers.set(shared.num_workers)
        self.memory.set(shared.storage.memory_bytes)
        self.memory_limit.set(shared.storage.memory_limit_bytes)
        self.aof_size.set(shared.storage.aof_bytes)
        self.aof_ok.set(shared.storage.aof_ok)
