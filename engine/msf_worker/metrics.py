"""What a worker counts. Labels are models, stages and reasons, never an id."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from msf_scheduler.histogram_buckets import LATENCY_BUCKETS_S
from msf_scheduler.jobs import ModelKey, Timings
from msf_scheduler.leases import Swept
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import REASONS, StepBatch
from msf_worker.latency_window import Recent

_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_FILLS = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
_OUTCOMES = ("succeeded", "failed", "expired", "dropped", "lost")
_MODEL = ("model", "version")
_STAGE = ("model", "version", "stage")


class WorkerMetrics:
    """One registry for one worker process."""

    def __init__(self, num_slots: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nothing reads
        self.registry = CollectorRegistry()
        self.recent = Recent()
        self._num_samples = self._num_rows = 0  # since `fill_since_last`
        ProcessCollector(registry=self.registry)
        self._described: dict[ModelKey, tuple[str, str]] = {}
        self.step_seconds = self._histogram("msf_step_batch_seconds", "Time of one step batch.", _STAGE, _STEP_SECONDS)
        self.batch_size = self._histogram("msf_step_batch_size", "Samples in a step batch.", _STAGE, _BATCH_SIZES)
        self.batch_fill = self._histogram("msf_step_batch_fill_ratio", "Samples over rows computed.", _STAGE, _FILLS)
        self.steps = self._counter("msf_steps", "Sample steps made, decodes with them.", _STAGE)
        self.previews = self._counter("msf_previews", "Previews decoded.", _MODEL)
        self.padded_rows = self._counter("msf_padded_rows", "Rows computed for nobody.", _STAGE)
        self.batches = self._counter("msf_step_batches", "Step batches by why they were chosen.", (*_STAGE, "reason"))
        self.queue_seconds = self._histogram(
            "msf_queue_seconds",
            "A finished job's time from admission to its first step batch.",
            _MODEL,
            LATENCY_BUCKETS_S,
        )
        self.stage_seconds = self._histogram(
            "msf_stage_seconds", "A finished job's time in one stage's step batches.", _STAGE, LATENCY_BUCKETS_S
        )
        self.encode_seconds = self._histogram(
            "msf_encode_seconds", "A finished job's time in encoding image files.", _MODEL, LATENCY_BUCKETS_S
        )
        self.jobs = self._counter("msf_worker_jobs", "Jobs that ended here.", (*_MODEL, "outcome"))
        self.claims = self._counter("msf_claims", "Jobs claimed.", _MODEL)
        self.reclaims = self._counter("msf_reclaims", "Jobs taken back from lost workers, by this process.")
        self.poisoned = self._counter("msf_jobs_poisoned", "Jobs given up that killed workers, by this process.")
        self.expired = self._counter("msf_jobs_expired_queued", "Jobs dropped in the queue, by this process.")
        self.slots_in_use = self._gauge("msf_slots_in_use", "Slots that hold a sample.", _MODEL)
        self._gauge("msf_slots", "Slots for each model.").set(num_slots)
        self.steps_available = self._gauge(
            "msf_steps_available_per_second",
            "Sample steps, decodes with them, of the model's default request that this worker can make in full "
            "batches, as measured lately and if it did nothing else.",
            _MODEL,
        )
        self.plans = self._counter("msf_plans", "Plans by where they came from.", (*_MODEL, "source"))
        self.info = self._gauge(
            "msf_worker_info",
            "1; what this worker serves with. `fingerprint` is the beginning of the runtime fingerprint.",
            (*_MODEL, "backend", "fingerprint"),
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the tasks of the event loop at every scrape."""
        tasks = self._gauge("msf_asyncio_tasks", "Tasks of the event loop.")
        tasks.set_function(lambda: len(asyncio.all_tasks(loop)))

    def watch_gpu(self, memory: Callable[[], tuple[int, int]]) -> None:
        """Tell the GPU's memory at every scrape; `memory` returns its free and all its bytes."""
        free = self._gauge("msf_gpu_memory_free_bytes", "Memory of the GPU that no process uses.")
        free.set_function(lambda: memory()[0])
        self._gauge("msf_gpu_memory_bytes", "All memory of the GPU.").set_function(lambda: memory()[1])

    def serves(self, model: ModelKey) -> None:
        """Begin a model's counters at 0: Prometheus does not see the first increment of one that appears."""
        self.claims.labels(*model)
        self.previews.labels(*model)
        self.queue_seconds.labels(*model)
        self.encode_seconds.labels(*model)
        for outcome in _OUTCOMES:
            self.jobs.labels(*model, outcome)
        for stage in Stage:
            for metric in (self.step_seconds, self.batch_size, self.batch_fill, self.steps, self.padded_rows):
                metric.labels(*model, stage)
            self.stage_seconds.labels(*model, stage)
            for reason in REASONS:
                self.batches.labels(*model, stage, reason)

    def stops_serving(self, model: ModelKey) -> None:
        """What it has now is nothing any more; what it has counted stays."""
        self.slots_in_use.remove(*model)
        self.steps_available.remove(*model)
        if model in self._described:
            self.info.remove(*model, *self._described.pop(model))

    def describe(self, model: ModelKey, backend: str, fingerprint: str, num_loaded: int, num_built: int) -> None:
        """With what a model is served, and how many of its plans were in the cache and how many were not."""
        self._described[model] = backend, fingerprint[:12]
        self.info.labels(*model, *self._described[model]).set(1)
        self.plans.labels(*model, "cache").inc(num_loaded)
        self.plans.labels(*model, "built").inc(num_built)

    def record_step(self, batch: StepBatch, seconds: float) -> None:
        labels = (*batch.model, batch.stage)
        size = len(batch.slots)
        self.step_seconds.labels(*labels).observe(seconds)
        self.batch_size.labels(*labels).observe(size)
        self.batch_fill.labels(*labels).observe(size / batch.bucket)
        self.steps.labels(*labels).inc(size)
        self.padded_rows.labels(*labels).inc(batch.bucket - size)
        self.batches.labels(*labels, batch.reason).inc()
        self._num_samples += size
        self._num_rows += batch.bucket

    def fill_since_last(self) -> float | None:
        """Samples over rows computed since this was asked last; None: nothing was."""
        fill = self._num_samples / self._num_rows if self._num_rows else None
        self._num_samples = self._num_rows = 0
        return fill

    def record_timings(self, model: ModelKey, timings: Timings, num_images: int) -> None:
        """Of a job whose images were stored."""
        self.recent.add(timings.total_ms, num_images)
        self.queue_seconds.labels(*model).observe(timings.queue_ms / 1000)
        self.stage_seconds.labels(*model, Stage.BASE).observe(timings.base_ms / 1000)
        self.stage_seconds.labels(*model, Stage.RESIDUAL).observe(timings.residual_ms / 1000)
        self.stage_seconds.labels(*model, Stage.DECODE).observe(timings.decode_ms / 1000)
        self.encode_seconds.labels(*model).observe(timings.encode_ms / 1000)

    def record_sweep(self, swept: Swept) -> None:
        self.reclaims.inc(swept.num_requeued)
        self.poisoned.inc(swept.num_poisoned)
        self.expired.inc(swept.num_expired)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)
