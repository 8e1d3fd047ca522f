"""What a worker counts. Labels are model and version, never an id."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from msf_serve.scheduler.policy import StepBatch

_STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_MODEL = ("model", "version")
_STAGE = ("model", "version", "stage")


class WorkerMetrics:
    """One registry for one worker process; `serve` opens an endpoint for Prometheus."""

    def __init__(self, num_slots: int) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.step_seconds = Histogram(
            "msf_step_batch_seconds", "Time of one step batch.", _STAGE, buckets=_STEP_SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "msf_step_batch_size", "Samples in a step batch.", _STAGE, buckets=_BATCH_SIZES, registry=registry
        )
        self.steps = Counter("msf_steps", "Sample steps made.", _STAGE, registry=registry)
        self.padded_rows = Counter("msf_padded_rows", "Rows computed for nobody.", _STAGE, registry=registry)
        self.batches = Counter(
            "msf_step_batches", "Step batches by why they were chosen.", (*_STAGE, "reason"), registry=registry
        )
        self.jobs = Counter("msf_worker_jobs", "Jobs that ended here.", (*_MODEL, "outcome"), registry=registry)
        self.slots_in_use = Gauge("msf_slots_in_use", "Slots that hold a sample.", _MODEL, registry=registry)
        Gauge("msf_slots", "Slots for each model.", registry=registry).set(num_slots)

    def serve(self, port: int) -> None:
        start_http_server(port, registry=self.registry)

    def record_step(self, model: Sequence[str], batch: StepBatch, bucket: int, seconds: float) -> None:
        labels = (*model, batch.stage)
        size = len(batch.slots)
        self.step_seconds.labels(*labels).observe(seconds)
        self.batch_size.labels(*labels).observe(size)
        self.steps.labels(*labels).inc(size)
        self.padded_rows.labels(*labels).inc(bucket - size)
        self.batches.labels(*labels, batch.reason).inc()
