"""What this process tells Prometheus. Labels name registered models only, never what a caller sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from msf_serve.scheduler.jobs import ModelInfo, Timings
from msf_serve.scheduler.queue import QueueDepth
from msf_serve.server.errors import translate

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
MODEL = ("model", "version")


class Metrics:
    """One registry per app. Every server reads the same gauges from Redis: aggregate them by max."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.registry = CollectorRegistry()
        tasks = self._gauge("msf_asyncio_tasks", "Tasks of the event loop", ())
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("msf_requests", "Image requests by outcome", (*MODEL, "outcome"))
        self.request_s = self._histogram("msf_request_seconds", "Image requests' duration", (*MODEL, "outcome"))
        self.queue_s = self._histogram("msf_queue_seconds", "Admission to first step batch", MODEL)
        self.stage_s = self._histogram(
            "msf_stage_seconds", "A job's time in one stage's step batches", (*MODEL, "stage")
        )
        self.encode_s = self._histogram("msf_encode_seconds", "A job's time in encoding image files", MODEL)
        self.images = self._counter("msf_images", "Images returned to callers", MODEL)
        self.clients_gone = self._counter("msf_clients_gone", "Callers that left before their answer", MODEL)
        self.round_trip_s = self._histogram("msf_redis_round_trip_seconds", "Admissions' round trip to Redis", ())
        self.redis_up = self._gauge("msf_redis_up", "Whether Redis answered this scrape", ())
        self.jobs_queued = self._gauge("msf_jobs_queued", "Jobs waiting for a worker", MODEL)
        self.jobs_running = self._gauge("msf_jobs_running", "Jobs held by workers", MODEL)
        self.samples = self._gauge("msf_samples", "Samples of queued and running jobs", MODEL)
        self.oldest_s = self._gauge("msf_queue_oldest_seconds", "Age of the oldest queued job", MODEL)

    def observe_request(self, model: ModelInfo | None, outcome: str, duration_s: float) -> None:
        """`model` is None when a request was refused before its model was known."""
        labels = ("", "") if model is None else (model.name, model.version)
        self.requests.labels(*labels, outcome).inc()
        self.request_s.labels(*labels, outcome).observe(duration_s)
        if outcome == "client_gone":
            self.clients_gone.labels(*labels).inc()

    def observe_job(self, model: ModelInfo, timings: Timings, num_images: int) -> None:
        labels = (model.name, model.version)
        self.queue_s.labels(*labels).observe(timings.queue_ms / 1000)
        self.stage_s.labels(*labels, "base").observe(timings.base_ms / 1000)
        self.stage_s.labels(*labels, "residual").observe(timings.residual_ms / 1000)
        self.stage_s.labels(*labels, "decode").observe(timings.decode_ms / 1000)
        self.encode_s.labels(*labels).observe(timings.encode_ms / 1000)
        self.images.labels(*labels).inc(num_images)

    def set_depths(self, depths: Mapping[tuple[str, str], QueueDepth] | None) -> None:
        """None: Redis did not answer, and old depths would be taken for new ones."""
        self.redis_up.set(depths is not None)
        for gauge in (self.jobs_queued, self.jobs_running, self.samples, self.oldest_s):
            gauge.clear()
        for labels, depth in (depths or {}).items():
            self.jobs_queued.labels(*labels).set(depth.num_jobs_queued)
            self.jobs_running.labels(*labels).set(depth.num_jobs_running)
            self.samples.labels(*labels).set(depth.num_samples)
            self.oldest_s.labels(*labels).set(depth.oldest_age_s)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=BUCKETS_S)


class MeasuredRoute(APIRoute):
    """Observes every request of its routes once, those too whose body never parsed.

    The route puts its model into `request.state.model` once it is known.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def measured(request: Request) -> Response:
            started = time.perf_counter()
            outcome = "error"
            request.state.model = None
            try:
                response = await handle(request)
                outcome = "succeeded"
                return response
            except Exception as error:
                outcome = translate(error).outcome
                raise
            finally:
                duration_s = time.perf_counter() - started
                request.app.state.context.metrics.observe_request(request.state.model, outcome, duration_s)

        return measured
