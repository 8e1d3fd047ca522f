"""What this process tells Prometheus. Labels name registered models only, never what a caller sent."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from msf_scheduler.histogram_buckets import LATENCY_BUCKETS_S
from msf_scheduler.jobs import JobSpec, ModelInfo, ModelKey, Timings
from msf_scheduler.leases import Swept
from msf_scheduler.queue import QueueDepth
from msf_scheduler.redis_info import Storage
from msf_server.errors import Forbidden, Unauthenticated, translate

MODEL = ("model", "version")
OUTCOMES = (
    *("succeeded", "invalid", "refused", "limited", "unavailable"),
    *("timeout", "failed", "cancelled", "client_gone", "error"),
)
OIP_ROUTES = tuple(f"/v2/models/{{model}}{which}/infer" for which in ("", "/versions/{version}"))
WAITING_ROUTES = ("/v1/images/generations", *OIP_ROUTES)  # whose answers are images
ROUTES = (*WAITING_ROUTES, "/v1/jobs")  # those that admit jobs
SHARED = " Read from Redis, the same in every server: aggregate by max."


@dataclass(frozen=True)
class Shared:
    """What every server reads from the same Redis at a scrape. `depths` by (model, version)."""

    depths: Mapping[ModelKey, QueueDepth]
    num_workers: int
    storage: Storage
    round_trip_s: float


@dataclass
class JobTotals:
    """Jobs of one model version that a caller waited for, since the start; times in milliseconds."""

    last_ended_at: float = 0.0  # Unix seconds
    num_images: int = 0
    num_jobs: int = 0
    num_cached: int = 0  # jobs beside those, answered by what an identical one had made; their time is not counted
    queue_ms: float = 0.0
    stages_ms: float = 0.0
    output_ms: float = 0.0  # decoder and encoder


class Metrics:
    """One registry per app. What is shared through Redis is a gauge, to be aggregated by max."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = CollectorRegistry()
        self.totals: defaultdict[ModelKey, JobTotals] = defaultdict(JobTotals)
        tasks = self._gauge("msf_asyncio_tasks", "Tasks of the event loop")
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("msf_requests", "Requests by route and outcome", (*MODEL, "route", "outcome"))
        self.request_s = self._histogram(
            "msf_request_seconds", "Requests' duration, the answer's images with it", (*MODEL, "route", "outcome")
        )
        self.images = self._counter("msf_images", "Images returned to callers who waited", (*MODEL, "source"))
        self.steps_demanded = self._counter(
            "msf_steps_demanded", "Sample steps that admitted jobs ask for, one decode for each sample with them", MODEL
        )
        self.clients_gone = self._counter("msf_clients_gone", "Callers that left before their answer", MODEL)
        self.denied = self._counter(
            "msf_requests_denied", "Requests that the API key, or its absence, did not let in", ("code",)
        )
        self.round_trip_s = self._histogram(
            "msf_redis_round_trip_seconds", "Round trips to Redis: admissions, and one at each scrape", ("call",)
        )
        self.reclaims = self._counter("msf_reclaims", "Jobs taken back from lost workers, by this process")
        self.poisoned = self._counter("msf_jobs_poisoned", "Jobs given up that killed workers, by this process")
        self.expired = self._counter("msf_jobs_expired_queued", "Jobs dropped in the queue, by this process")
        self.webhooks = self._counter("msf_webhooks", "Attempts to deliver a webhook by what came of it", ("outcome",))
        for outcome in ("delivered", "retried", "failed"):
            self.webhooks.labels(outcome)
        self.redis_up = self._gauge("msf_redis_up", "Whether Redis answered this scrape")
        self.jobs_queued = self._gauge("msf_jobs_queued", "Jobs waiting for a worker." + SHARED, MODEL)
        self.jobs_running = self._gauge("msf_jobs_running", "Jobs held by workers." + SHARED, MODEL)
        self.samples = self._gauge("msf_samples", "Samples of queued and running jobs." + SHARED, MODEL)
        self.oldest_s = self._gauge("msf_queue_oldest_seconds", "Age of the oldest queued job." + SHARED, MODEL)
        self.workers = self._gauge("msf_workers", "Workers with a recent heartbeat." + SHARED)
        self.memory = self._gauge("msf_redis_memory_bytes", "Memory that Redis uses." + SHARED)
        self.memory_limit = self._gauge("msf_redis_memory_limit_bytes", "Redis's maxmemory, 0: none." + SHARED)
        self.aof_size = self._gauge("msf_redis_aof_bytes", "Size of Redis's append-only file." + SHARED)
        self.aof_ok = self._gauge("msf_redis_aof_ok", "Whether its last write and rewrite succeeded." + SHARED)

        for error in (Unauthenticated, Forbidden):
            self.denied.labels(error.code)
        self._show_requests("", "")

    def observe_request(self, model: ModelInfo | None, route: str, outcome: str, duration_s: float) -> None:
        """`model` is None when a request was refused before its model was known."""
        name, version = ("", "") if model is None else (model.name, model.version)
        self.requests.labels(name, version, route, outcome).inc()
        self.request_s.labels(name, version, route, outcome).observe(duration_s)
        if outcome == "client_gone":
            self.clients_gone.labels(name, version).inc()

    def observe_admission(self, spec: JobSpec) -> None:
        """A job that is new, not one that was asked for before."""
        self.steps_demanded.labels(spec.model, spec.version).inc(spec.num_samples * (spec.num_steps + 1))

    def observe_images(self, model: ModelInfo, num_images: int, *, cached: bool) -> None:
        self.images.labels(model.name, model.version, "cached" if cached else "made").inc(num_images)

    def observe_job(self, model: ModelInfo, timings: Timings, num_images: int, *, cached: bool) -> None:
        totals = self.totals[model.name, model.version]
        totals.last_ended_at = time.time()
        if cached:
            totals.num_cached += 1
            return
        totals.num_jobs += 1
        totals.num_images += num_images
        totals.queue_ms += timings.queue_ms
        totals.stages_ms += timings.base_ms + timings.residual_ms
        totals.output_ms += timings.decode_ms + timings.encode_ms

    def waits(self, model: ModelInfo, *, succeeded: bool) -> tuple[int, float]:
        """How many requests for images ended so, and how many seconds they took together."""
        count = seconds = 0.0
        for sample in next(iter(self.request_s.collect())).samples:
            its = sample.labels
            if (
                (its["model"], its["version"]) == (model.name, model.version)
                and its["route"] in WAITING_ROUTES
                and (its["outcome"] == "succeeded") == succeeded
            ):
                count += sample.value if sample.name.endswith("_count") else 0.0
                seconds += sample.value if sample.name.endswith("_sum") else 0.0
        return int(count), seconds

    def observe_sweep(self, swept: Swept) -> None:
        self.reclaims.inc(swept.num_requeued)
        self.poisoned.inc(swept.num_poisoned)
        self.expired.inc(swept.num_expired)

    def show(self, models: Iterable[ModelKey]) -> None:
        """Begin the counters of a model at 0: Prometheus does not see the first increment of one that appears."""
        for model in models:
            self._show_requests(*model)
            self.steps_demanded.labels(*model)
            self.clients_gone.labels(*model)
            for source in ("made", "cached"):
                self.images.labels(*model, source)

    def _show_requests(self, *model: str) -> None:
        for route in ROUTES:
            for outcome in OUTCOMES:
                self.requests.labels(*model, route, outcome)
            self.request_s.labels(*model, route, "succeeded")

    def set_shared(self, shared: Shared | None) -> None:
        """None: Redis did not answer; then these are absent or NaN, as old values would be taken for new ones."""
        self.redis_up.set(shared is not None)
        for gauge in (self.jobs_queued, self.jobs_running, self.samples, self.oldest_s):
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
            self.oldest_s.labels(*labels).set(depth.oldest_age_s)
        self.workers.set(shared.num_workers)
        self.memory.set(shared.storage.memory_bytes)
        self.memory_limit.set(shared.storage.memory_limit_bytes)
        self.aof_size.set(shared.storage.aof_bytes)
        self.aof_ok.set(shared.storage.aof_ok)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=LATENCY_BUCKETS_S)


class MeasuredRoute(APIRoute):
    """Observes every request of its routes once, those too whose body never parsed.

    The route puts its model into `request.state.model` once it is known, and how a stream ended, if otherwise than
    well, into `request.state.outcome`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def measured(request: Request) -> Response:
            started = time.perf_counter()
            request.state.model = None
            request.state.outcome = "succeeded"

            def observe() -> None:
                duration_s = time.perf_counter() - started
                metrics = request.app.state.context.metrics
                metrics.observe_request(request.state.model, self.path_format, request.state.outcome, duration_s)

            try:
                response = await handle(request)
            except BaseException as error:
                request.state.outcome = translate(error).outcome if isinstance(error, Exception) else "error"
                observe()
                raise
            if isinstance(response, StreamingResponse):
                response.body_iterator = _then(response.body_iterator, observe)
            else:
                observe()
            return response

        return measured


async def _then(frames: AsyncIterable[Any], finish: Callable[[], None]) -> AsyncIterator[Any]:
    try:
        async for frame in frames:
            yield frame
    finally:
        finish()
