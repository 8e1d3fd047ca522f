"""Prometheus metrics of a worker. Labels are models, stages and reasons, never an id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import Counter, Histogram

from msf_scheduler.jobs import ModelKey, Priority, Terms, Timings
from msf_scheduler.process_metrics import BoundedLabel, ProcessMetrics, exemplar
from msf_scheduler.stage import Stage
from msf_scheduler.step_batching import REASONS, StepBatch
from msf_scheduler.tracing import trace_id_of
from msf_worker.latency_window import LatencyWindow

_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_FILL_RATIOS = (0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
_OUTCOMES = ("succeeded", "failed", "expired", "dropped", "lost")
HOST_PARTS = ("choose", "launch", "finish")  # of a step batch
_MODEL = ("model", "version")
_STAGE = ("model", "version", "stage")
_MAX_WEIGHTS = 8  # of tenants that have series of their own


class StepMetrics(NamedTuple):
    """Metrics of one stage's step batches; finding them by label takes longer than counting."""

    seconds: Histogram
    size: Histogram
    fill: Histogram
    steps: Counter
    padded_rows: Counter


class WorkerMetrics(ProcessMetrics):
    """Registry of one worker process."""

    def __init__(self) -> None:
        super().__init__()
        self.latencies = LatencyWindow()
        self._num_used_rows = self._num_rows = 0  # since the last call of `take_fill_ratio`
        self._stages: dict[ModelKey, tuple[Stage, ...]] = {}
        self._described: dict[ModelKey, tuple[str, str]] = {}
        self.step_seconds = self._histogram("msf_step_batch_seconds", "Time of one step batch", _STAGE, _STEP_SECONDS)
        self.batch_size = self._histogram("msf_step_batch_size", "Samples per step batch", _STAGE, _BATCH_SIZES)
        self.batch_fill = self._histogram(
            "msf_step_batch_fill_ratio", "Rows in use over computed rows of a step batch", _STAGE, _FILL_RATIOS
        )
        self.steps = self._counter("msf_steps", "Steps of samples, decodes included", _STAGE)
        self.previews = self._counter("msf_previews", "Previews decoded", _MODEL)
        self.padded_rows = self._counter("msf_padded_rows", "Rows computed as padding", _STAGE)
        self.batches = self._counter("msf_step_batches", "Step batches by reason", (*_STAGE, "reason"))
        self._weights = BoundedLabel(_MAX_WEIGHTS)
        self.queue_seconds = self._histogram(
            "msf_queue_seconds",
            "Time from admission to the first step batch of finished jobs, by priority and weight of the tenant",
            (*_MODEL, "priority", "weight"),
        )
        self.stage_seconds = self._histogram(
            "msf_stage_seconds", "Time of finished jobs in a stage's step batches", _STAGE
        )
        self.encode_seconds = self._histogram("msf_encode_seconds", "Time of encoding finished jobs", _MODEL)
        self.jobs = self._counter("msf_worker_jobs", "Jobs that ended in this worker", (*_MODEL, "outcome"))
        self.claims = self._counter("msf_claims", "Jobs claimed", _MODEL)
        self.slots_in_use = self._gauge("msf_slots_in_use", "Slots that hold a sample", _MODEL)
        self.slots = self._gauge("msf_slots", "Slots of a model", _MODEL)
        self.steps_available = self._gauge(
            "msf_steps_available_per_second",
            "Steps, decodes included, that this worker could make of the model's default request in full batches",
            _MODEL,
        )
        self.device_busy_seconds = self._counter("msf_device_busy_seconds", "Time in which the device computed", ())
        host_seconds = self._counter(
            "msf_host_seconds",
            "Time of the device's thread on the host, by part; it may overlap with computing",
            ("part",),
        )
        self._host_seconds = {part: host_seconds.labels(part) for part in HOST_PARTS}
        self._step_metrics = lru_cache(maxsize=None)(self._make_step_metrics)
        self._batches = lru_cache(maxsize=None)(self._find_batches)
        self.load_seconds = self._gauge(
            "msf_model_load_seconds", "Time of loading a served version, compiling and warming up included", _MODEL
        )
        self.build_seconds = self._gauge(
            "msf_plan_build_seconds", "Share of it for compiling and validating plans; 0 if they were cached", _MODEL
        )
        self.info = self._gauge(
            "msf_worker_info",
            "1; `fingerprint` is the start of the runtime fingerprint",
            (*_MODEL, "backend", "fingerprint"),
        )
        self._refused = self._gauge(
            "msf_model_version_refused",
            "1 for each version that this worker cannot serve; the index has the reason",
            _MODEL,
        )

    def watch_work(self, held_s: Callable[[], float]) -> None:
        """Report the device time of the work that the worker holds, at every scrape."""
        self._gauge("msf_work_held_seconds", "Device time of the claimed work that is not done").set_function(held_s)

    def add_model(self, model: ModelKey, stages: Sequence[Stage]) -> None:
        """Start a model's counters at 0: Prometheus misses the first increment of a new series."""
        for metric in (self.claims, self.previews, self.encode_seconds):
            metric.labels(*model)
        for priority in Priority:
            self.queue_seconds.labels(*model, priority, self._weights.of("1"))
        for outcome in _OUTCOMES:
            self.jobs.labels(*model, outcome)
        self._stages[model] = tuple(stages)
        for stage in stages:
            for metric in (self.step_seconds, self.batch_size, self.batch_fill, self.steps, self.padded_rows):
                metric.labels(*model, stage)
            self.stage_seconds.labels(*model, stage)
            for reason in REASONS:
                self.batches.labels(*model, stage, reason)

    def remove_model(self, model: ModelKey) -> None:
        """Remove a model's gauges; its counters stay."""
        for gauge in (self.slots, self.slots_in_use, self.steps_available, self.load_seconds, self.build_seconds):
            gauge.remove(*model)
        self.info.remove(*model, *self._described.pop(model))

    def describe(self, model: ModelKey, backend: str, fingerprint: str) -> None:
        """Report a model's backend and fingerprint."""
        self._described[model] = backend, fingerprint[:12]
        self.info.labels(*model, *self._described[model]).set(1)

    def report_refused(self, models: Iterable[ModelKey]) -> None:
        """Report the versions that cannot be served."""
        self._refused.clear()
        for model in models:
            self._refused.labels(*model).set(1)

    def record_step(self, batch: StepBatch, seconds: float) -> None:
        """Count a step batch that ran."""
        metrics = self._step_metrics(batch.model, batch.stage)
        size = len(batch.slots)
        metrics.seconds.observe(seconds)
        metrics.size.observe(size)
        metrics.fill.observe(batch.num_rows / batch.bucket)
        metrics.steps.inc(size)
        metrics.padded_rows.inc(batch.bucket - batch.num_rows)
        self._batches(batch.model, batch.stage, batch.reason).inc()
        self.device_busy_seconds.inc(seconds)
        self._num_used_rows += batch.num_rows
        self._num_rows += batch.bucket

    def add_host_seconds(self, part: str, seconds: float) -> None:
        """Count time in which the device's thread did a part of its work on the host."""
        self._host_seconds[part].inc(seconds)

    def _find_batches(self, model: ModelKey, stage: Stage, reason: str) -> Counter:
        return self.batches.labels(*model, stage, reason)

    def _make_step_metrics(self, model: ModelKey, stage: Stage) -> StepMetrics:
        labels = (*model, stage)
        return StepMetrics(
            self.step_seconds.labels(*labels),
            self.batch_size.labels(*labels),
            self.batch_fill.labels(*labels),
            self.steps.labels(*labels),
            self.padded_rows.labels(*labels),
        )

    def take_fill_ratio(self) -> float | None:
        """Return used over computed rows since the last call; None if there were none."""
        ratio = self._num_used_rows / self._num_rows if self._num_rows else None
        self._num_used_rows = self._num_rows = 0
        return ratio

    def record_timings(self, model: ModelKey, terms: Terms, timings: Timings, num_images: int) -> None:
        """Count a job whose images are stored."""
        self.latencies.add(timings.total_ms, num_images)
        self.queue_seconds.labels(*model, terms.priority, self._weights.of(f"{terms.weight:g}")).observe(
            timings.queue_ms / 1000, exemplar(trace_id_of(terms.traceparent))
        )
        for stage in self._stages[model]:
            self.stage_seconds.labels(*model, stage).observe(timings.stage_ms(stage) / 1000)
        self.encode_seconds.labels(*model).observe(timings.encode_ms / 1000)
